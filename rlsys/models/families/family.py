"""The description of a model family: all that prompts, positions, checks, plans and tiny models need to know of it.

What the learner needs of a family's modules, which takes torch, is in `learner.model.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlsys.types import PatchShape

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


CHUNK_TOKENS = 64
"""Tokens that linear attention computes at once."""


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
    side_px: side in pixels of the square that every frame is, 0 if frames differ in size.
    has_class_token: whether a token with a position of its own is before the patches of a frame.
    is_scaled: whether a block has a learned scale for each of its two branches.
    has_attention_biases, has_query_norms: of a block's queries, keys and values; its norms have no biases and are of
    the whole width.
    is_narrow: whether the projector norms merged patches and its inner width is the language model's; else it norms
    patches, and its inner width is that of a merged patch.
    heads: of attention, 0 if an engine's workers need not share them equally.
    """

    depth: int
    hidden: int
    mlp: int
    heads: int
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
    side_px: int = 0
    has_class_token: bool = False
    is_scaled: bool = False
    has_attention_biases: bool = True
    has_query_norms: bool = False
    is_narrow: bool = False

    @property
    def patch(self) -> PatchShape:
        """How frames are cut."""
        return PatchShape(px=self.patch_size, frames=self.temporal_patch_size, side_px=self.side_px)

    @property
    def patch_kernel(self) -> tuple[int, ...]:
        """Shape of the patch embedding's kernel of one output; one of single frames has no axis of frames."""
        frames = () if self.temporal_patch_size == 1 else (self.temporal_patch_size,)
        return self.in_channels, *frames, self.patch_size, self.patch_size

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
        attention = 4 * size**2 + (4 if self.has_attention_biases else 1) * size
        mlp = matrices * size * inner + (matrices - 1) * inner + size
        vectors = self.has_patch_bias + self.num_positions + 2 * self.has_class_token
        embedding = (self.patch_dim + vectors) * size
        more = (2 * self.is_scaled + 2 * self.has_query_norms) * size
        return embedding + self.depth * (attention + mlp + 2 * self.norm + more)

    def projector_parameters(self, hidden: int) -> int:
        """Return the number of parameters of all projectors into a language model of width `hidden`.

        Those of deepstack have norms of merged patches.
        """
        merged, inner = self.hidden * self.merge_size**2, self.projector_inner(hidden)
        matrices = (merged + 1) * inner + (inner + 1) * hidden
        norm = 2 * merged if self.is_narrow else self.norm
        return norm + matrices + self.num_deepstack * (2 * merged + matrices)

    def projector_inner(self, hidden: int) -> int:
        """Return the inner width of a projector into a language model of width `hidden`."""
        return hidden if self.is_narrow else self.hidden * self.merge_size**2


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
class LinearAttention:
    """The layers of a language model that read a sequence into a state instead of keeping keys and values of it.

    Such a layer is a gated delta rule behind a short convolution (Gated DeltaNet, arXiv:2412.06464).
    indices: which of the layers these are.  key_heads, value_heads, key_size, value_size: their heads, and numbers of a
    head; a head of keys serves as many heads of values as there are for it.  kernel: tokens that the convolution reads.
    """

    indices: tuple[int, ...]
    key_heads: int
    value_heads: int
    key_size: int
    value_size: int
    kernel: int

    @property
    def layers(self) -> int:
        """Number of these layers."""
        return len(self.indices)

    @property
    def leading(self) -> int:
        """Number of these layers before the first of another kind."""
        return next(number for number in range(len(self.indices) + 1) if number not in self.indices)

    @property
    def values(self) -> int:
        """Numbers of all heads of values together."""
        return self.value_heads * self.value_size

    @property
    def channels(self) -> int:
        """Numbers of queries, keys and values together, which the convolution reads."""
        return 2 * self.key_heads * self.key_size + self.values

    @property
    def state(self) -> int:
        """Numbers of the state of one layer after any number of tokens, without the convolution's last inputs."""
        return self.value_heads * self.key_size * self.value_size

    @property
    def tail(self) -> int:
        """Numbers of the convolution's last inputs in one layer."""
        return (self.kernel - 1) * self.channels

    def matrices(self, hidden: int) -> int:
        """Return the number of parameters of one layer's matrices in a language model of width `hidden`."""
        return hidden * (self.channels + 2 * self.values + 2 * self.value_heads)

    def layer_parameters(self, hidden: int) -> int:
        """Return the number of parameters of one layer: matrices, convolution, decay and step by head, and a norm."""
        return self.matrices(hidden) + self.kernel * self.channels + 2 * self.value_heads + self.value_size

    def multiply_adds(self, hidden: int) -> float:
        """Return what a token costs in one layer: matrices, convolution, and the rule in chunks.

        In a chunk a head of keys and values is multiplied by the chunk's other tokens and by the state: keys and
        queries by keys, the triangular system for keys and values, and values by weights; the state is read by keys
        and queries, and written.
        """
        in_chunk = CHUNK_TOKENS * (3 * self.key_size + 2 * self.value_size)
        rule = self.value_heads * (in_chunk + 3 * self.key_size * self.value_size)
        return self.matrices(hidden) + self.kernel * self.channels + rule

    def state_bytes(self, width: int) -> int:
        """Return what an engine keeps of one sequence: states in float32, tails in numbers of `width` bytes."""
        return self.layers * (4 * self.state + width * self.tail)


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


@dataclass(frozen=True, kw_only=True)
class TinyProcessing:
    """Settings of a tiny model's image processor, video processor and processor."""

    images: Mapping[str, Any]
    videos: Mapping[str, Any]
    both: Mapping[str, Any] = field(default_factory=dict)


def scaled_frames(patch_px: int, **images: Any) -> TinyProcessing:  # noqa: ANN401 - a processor's own settings
    """Return the settings of processors that keep the aspect ratio. images: further ones of the image processor.

    The published lower bounds (4 tokens an image, 128 a frame) would enlarge small frames.
    """
    token = (2 * patch_px) ** 2
    size = {"shortest_edge": token, "longest_edge": 256 * token}
    return TinyProcessing(
        images={"size": size, **images},
        videos={"size": size, "do_sample_frames": False, "cap_pixels_per_frame": False},
    )


def accepted(tree: Mapping[str, Any]) -> str:
    """Return "": nothing in a config.json is refused."""
    return ""


def no_experts(text: Mapping[str, Any]) -> Experts | None:
    """Return None: no layer has experts."""
    return None


def no_linear_attention(text: Mapping[str, Any]) -> LinearAttention | None:
    """Return None: every layer keeps keys and values."""
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
    tower, language_model: names of the modules of transformers' model, with a dot behind.  projectors: prefixes of the
    parameters that map the tower's states into the language model, in the tower or beside it.
    blocks, patch_embedding, weight_prefixes: of the names of tensors in checkpoints: the list of the tower's blocks,
    the end of the patch embedding's kernel, and how any of them begins.
    read_vision: reads the sizes from `vision_config` of a config.json; raises KeyError for a size that is missing.
    tiny_vision: makes the `vision_config` of a tiny model.
    model, processor, image_processor, video_processor: transformers' classes.
    unchanged: settings of the processors with which frames stay as they are.
    stamp: format of the text before each temporal patch of a video, for its `seconds` and its `number`, from 1; "" if
    there is none and the patches follow one another.  stamp_joint: text between a patch and the next stamp.
    stamped_between: the tokens around the placeholders of a patch behind a stamp.  image_between: those around an
    image's, where the chat template does not write them; () if it does.
    has_one_axis: whether a token has one position, its number in the sequence, whatever the media are.
    refusal: says why a config.json is of no kind that is supported; "" if it is.  other_layouts: `model_type` of
    checkpoints of the family in a layout that is not supported -> what to use instead.
    head_size: of attention, where a config.json omits it; None for width divided by heads.
    has_attention_biases: of queries, keys and values.  has_query_norms: whether heads of queries and keys are normed.
    read_experts: reads the experts from the settings of a config.json's language model; None if there are none.
    has_output_gate: whether attention multiplies its output by a gate, which the projection of queries computes too.
    read_linear_attention: reads the layers with a state in the place of keys and values; None if there are none.
    unused: beginnings of the names of tensors that published checkpoints have, but neither transformers nor vLLM reads.
    transposed: endings of the names of parameters whose last two axes checkpoints have the other way round than
    transformers' modules.
    problems: yields what else makes a checkpoint unusable, from the settings of its language model and the shapes of
    its tensors by name.
    limits: what it cannot do, for people.
    tiny_text, tiny_config: settings of a tiny model's language model and of the whole that differ from the others'.
    tiny_processing: settings of its processors.  tiny_tokens: special tokens that its tokenizer also has, by the name
    of the attribute that it has for each.  media_texts: the parts of its chat template for an image and a video.
    tiny_ranges: bounds between which parameters of a tiny model are drawn evenly, by the ends of their names.
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
    blocks: str = "blocks"
    patch_embedding: str = "visual.patch_embed.proj.weight"
    weight_prefixes: tuple[str, ...] = ("model.", "visual.", "lm_head.")
    unchanged: Mapping[str, Any] = field(
        default_factory=lambda: {"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False}
    )
    stamp: str = ""
    stamp_joint: str = ""
    stamped_between: tuple[str, str] = ("", "")
    image_between: tuple[str, str] | tuple[()] = ()
    has_one_axis: bool = False
    refusal: Callable[[Mapping[str, Any]], str] = accepted
    other_layouts: Mapping[str, str] = field(default_factory=dict)
    head_size: int | None = None
    has_attention_biases: bool = True
    has_query_norms: bool = False
    read_experts: Callable[[Mapping[str, Any]], Experts | None] = no_experts
    has_output_gate: bool = False
    read_linear_attention: Callable[[Mapping[str, Any]], LinearAttention | None] = no_linear_attention
    unused: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    problems: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], Iterator[str]] = no_problems
    limits: tuple[str, ...] = ()
    tiny_text: Mapping[str, Any] = field(default_factory=dict)
    tiny_config: Mapping[str, Any] = field(default_factory=dict)
    tiny_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tiny_processing: TinyProcessing = scaled_frames(14)
    tiny_tokens: Mapping[str, str] = field(default_factory=dict)
    media_texts: tuple[str, str] = (
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|vision_start|><|video_pad|><|vision_end|>",
    )

    @property
    def tells_seconds(self) -> bool:
        """Whether the text of a prompt has the times of frames, which the engine must know to write it."""
        return "{seconds" in self.stamp
