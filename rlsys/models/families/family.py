"""The description of a model family: all that prompts, positions, checks, plans and tiny models need to know of it.

What the learner needs of a family's modules, which takes torch, is in `learner.model.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

EVERYTHING = (
    "video",
    "images",
    "several media in a prompt",
    "shared-prompt packing",
    "LoRA",
    "frozen parts",
    "ZeRO 0 to 3",
    "sequence parallelism",
    "weight sync",
    "export",
)
"""What a family can support."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision tower.

    window_size: side in pixels of the windows within which blocks attend, except for `num_full_attention` blocks; 0 if
    there are no windows and every block attends within a temporal patch.
    is_gated: whether a block's MLP has a gate, a third matrix.  has_norm_biases: whether its norms have biases.
    tokens_per_second: temporal positions per second of video, see `rlsys.models.mrope`; None where the time axis
    counts temporal patches, however far apart they are.
    num_positions: learned positions of patches, 0 if there are none.  num_deepstack: blocks whose states are projected
    and added to the language model's too, each by a projector of its own.  has_patch_bias: of the patch embedding.
    """

    depth: int
    hidden: int
    mlp: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window_size: int
    num_full_attention: int
    is_gated: bool
    has_norm_biases: bool
    tokens_per_second: float | None
    num_positions: int = 0
    num_deepstack: int = 0
    has_patch_bias: bool = False

    @property
    def patch_dim(self) -> int:
        """Number of values in one patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def mlp_matrices(self) -> int:
        """Number of matrices of a block's MLP, each of hidden x mlp numbers."""
        return 3 if self.is_gated else 2

    @property
    def norm(self) -> int:
        """Number of parameters of a norm of the tower."""
        return 2 * self.hidden if self.has_norm_biases else self.hidden

    @property
    def tower_parameters(self) -> int:
        """Number of parameters of the tower without the projector."""
        size, inner, matrices = self.hidden, self.mlp, self.mlp_matrices
        attention = 4 * size**2 + 4 * size
        mlp = matrices * size * inner + (matrices - 1) * inner + size
        embedding = (self.patch_dim + self.has_patch_bias + self.num_positions) * size
        return embedding + self.depth * (attention + mlp + 2 * self.norm)

    def projector_parameters(self, hidden: int) -> int:
        """Return the number of parameters of all projectors into a language model of width `hidden`.

        Those of deepstack have norms of merged patches.
        """
        merged = self.hidden * self.merge_size**2
        matrices = merged * (merged + 1) + (merged + 1) * hidden
        return self.norm + matrices + self.num_deepstack * (2 * merged + matrices)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of a language model, `layers` of whose layers have them in the place of one MLP.

    count: of a layer.  per_token: of which a token passes as many.  mlp: width of an expert, which has a gate.
    """

    layers: int
    count: int
    per_token: int
    mlp: int

    def parameters(self, hidden: int) -> int:
        """Return the number of parameters of all experts and routers of a language model of width `hidden`."""
        return self.layers * (self.layer_parameters(hidden) + self.count * hidden)

    def layer_parameters(self, hidden: int) -> int:
        """Return the number of parameters of the experts of one layer, without its router."""
        return self.count * 3 * hidden * self.mlp

    def idle(self, hidden: int, num_tokens: int = 1) -> float:
        """Return the number of parameters that no token of `num_tokens` needs, if routers choose evenly."""
        unused = (1 - self.per_token / self.count) ** num_tokens
        return self.layers * self.layer_parameters(hidden) * unused


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    """Sizes of a tiny model's vision tower. out_hidden: width of its language model, which has `layers` layers."""

    depth: int
    hidden: int
    mlp: int
    heads: int
    full_attention_blocks: tuple[int, ...]
    out_hidden: int
    layers: int


def no_experts(text: Mapping[str, Any]) -> Experts | None:
    """Return None: no layer has experts."""
    return None


def no_problems(text: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield nothing."""
    return iter(())


@dataclass(frozen=True, kw_only=True)
class Family:
    """What distinguishes a model family.

    model_type: in the config.json of its checkpoints.  title: its published name.
    checkpoints: the published sizes.  supports: what has been tested with a tiny model of the family.
    time_axis, tower_attention: what the time axis counts and within what the tower attends, for people.
    image_pad, video_pad: the placeholder tokens, whose ids are `image_pad_id` and `video_pad_id` where a config.json
    omits them.  never_sampled: tokens that a response must not contain, if the tokenizer has them.
    tower, language_model: names of the modules of transformers' model.  projectors: prefixes of the parameters within
    the tower that map its states into the language model.
    read_vision: reads the sizes from `vision_config` of a config.json; raises KeyError for a size that is missing.
    tiny_vision: makes the `vision_config` of a tiny model.
    model, processor, image_processor, video_processor: transformers' classes.
    stamp: format of the text before each temporal patch of a video, for its seconds; "" if there is none and the
    patches follow one another.  stamped_between: the tokens around the placeholders of a patch behind a stamp.
    head_size: of attention, where a config.json omits it; None for width divided by heads.
    has_attention_biases: of queries, keys and values.  has_query_norms: whether heads of queries and keys are normed.
    read_experts: reads the experts from the settings of a config.json's language model; None if there are none.
    transposed: endings of the names of parameters whose last two axes checkpoints have the other way round than
    transformers' modules.
    problems: yields what else makes a checkpoint unusable, from the settings of its language model and the shapes of
    its tensors by name.
    limits: what it cannot do, for people.
    tiny_text, tiny_images: settings of a tiny model's language model and image processor that differ from the others'.
    """

    model_type: str
    title: str
    checkpoints: tuple[str, ...]
    supports: tuple[str, ...]
    time_axis: str
    tower_attention: str
    image_pad: str
    video_pad: str
    image_pad_id: int
    video_pad_id: int
    never_sampled: tuple[str, ...]
    tower: str
    projectors: tuple[str, ...]
    language_model: str
    read_vision: Callable[[Mapping[str, Any]], VisionConfig]
    tiny_vision: Callable[[TinyShape], dict[str, Any]]
    model: str
    processor: str
    image_processor: str
    video_processor: str
    stamp: str = ""
    stamped_between: tuple[str, str] = ("", "")
    head_size: int | None = None
    has_attention_biases: bool = True
    has_query_norms: bool = False
    read_experts: Callable[[Mapping[str, Any]], Experts | None] = no_experts
    transposed: tuple[str, ...] = ()
    problems: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], Iterator[str]] = no_problems
    limits: tuple[str, ...] = ()
    tiny_text: Mapping[str, Any] = field(default_factory=dict)
    tiny_images: Mapping[str, Any] = field(default_factory=dict)
