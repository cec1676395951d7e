"""Frozen parts: trained parameters, and the number of times that the vision tower computes a clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.model.families import tower_of
from learner.model.frozen import freeze
from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.packing.packing import PackedBatch, pack
from learner.packing.rows import Row
from tests.support.learner import cut_of, make_clip, make_group, make_prompt, make_row
from tests.support.models import part_of
from tests.support.rounding import LOGPROB

BOTH = ("vision_tower", "projector")
BLANK = 4
"""Number of patches of the blank image that keeps ranks synchronised."""


@pytest.fixture
def make_policy(family_dir: Path) -> Callable[..., PackedPolicy]:
    def make(*frozen_parts: str) -> PackedPolicy:
        model = load_model(family_dir, dtype="float32", attention="sdpa")
        freeze(model, frozen_parts)
        return PackedPolicy(model)

    return make


def packed(policy: PackedPolicy, folder: Path, *rows: Row) -> PackedBatch:
    return pack(rows, read_layout(policy.model, folder), dtype=torch.float32)


def count_patches(policy: PackedPolicy) -> list[int]:
    """Return a list to which every call of the tower appends its number of patches."""
    seen: list[int] = []

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        patches = arguments[0] if arguments else named["pixel_values"]
        seen.append(patches.shape[:-1].numel())

    tower_of(policy.model).register_forward_pre_hook(count, with_kwargs=True)
    return seen


def rows(folder: Path) -> tuple[Row, Row, Row]:
    """Return rows with a video of 96 patches, an image of 16, and only text."""
    rng, cut = np.random.default_rng(0), cut_of(folder)
    found = []
    for index, kinds in enumerate([("video",), ("image",), ()]):
        clips = tuple(make_clip(rng, kind, 6 * cut.patch.frames, 4, cut.patch) for kind in kinds)
        group = make_group(rng, str(index), (), [5, 3])
        found.append(make_row(replace(group, clips=clips, prompt=make_prompt(rng, clips, cut=cut))))
    return found[0], found[1], found[2]


@pytest.mark.parametrize(
    ("frozen_parts", "expected"),
    [((), (True, True)), (("vision_tower",), (False, True)), (("projector",), (True, False)), (BOTH, (False, False))],
)
def test_frozen_parts_have_no_gradient_and_the_others_all_have(
    make_policy: Callable[..., PackedPolicy], frozen_parts: tuple[str, ...], expected: tuple[bool, bool]
) -> None:
    policy = make_policy(*frozen_parts)
    trained = {part_of(name) for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert ("vision_tower" in trained, "projector" in trained) == expected
    assert all(p.requires_grad for p in policy.model.model.language_model.parameters())


@pytest.mark.parametrize("frozen_parts", [("vision_tower",), BOTH])
def test_a_frozen_tower_sees_each_clip_once_and_is_called_in_every_pass(
    make_policy: Callable[..., PackedPolicy], family_dir: Path, frozen_parts: tuple[str, ...]
) -> None:
    policy = make_policy(*frozen_parts)
    seen = count_patches(policy)
    video, image, text = rows(family_dir)
    first, _ = policy(packed(policy, family_dir, video))
    policy(packed(policy, family_dir, image, video))
    again, _ = policy(packed(policy, family_dir, video))
    for batch in ((), (text,)):
        policy(packed(policy, family_dir, *batch))
    assert seen == [96, 16, BLANK, BLANK, BLANK]
    assert torch.equal(first, again)
    policy.forget_features()
    policy(packed(policy, family_dir, video))
    assert seen[5:] == [96]


def test_a_trained_tower_sees_the_clips_of_every_pass(
    make_policy: Callable[..., PackedPolicy], family_dir: Path
) -> None:
    policy = make_policy("projector")
    seen = count_patches(policy)
    video, image, text = rows(family_dir)
    for batch in ((video,), (video, image), (text,)):
        policy(packed(policy, family_dir, *batch))
    assert seen == [96, 112, BLANK]


def test_rows_with_the_same_clip_share_its_features(make_policy: Callable[..., PackedPolicy], family_dir: Path) -> None:
    policy = make_policy()
    seen = count_patches(policy)
    video, image, _ = rows(family_dir)
    alone, _ = policy(packed(policy, family_dir, video))
    together, _ = policy(packed(policy, family_dir, video, image, video))
    assert seen == [96, 112]
    torch.testing.assert_close(together[:8], alone, rtol=0, atol=LOGPROB)
    torch.testing.assert_close(together[16:], alone, rtol=0, atol=LOGPROB)


@pytest.mark.parametrize("frozen_parts", [("vision_tower",), ("projector",), BOTH])
@pytest.mark.parametrize("kind", ["video", "known video", "text", "dummy"])
def test_every_pass_has_a_gradient_for_every_trained_parameter(
    make_policy: Callable[..., PackedPolicy], family_dir: Path, frozen_parts: tuple[str, ...], kind: str
) -> None:
    # ranks add up their gradients: one that has none for a parameter would leave the others waiting
    policy = make_policy(*frozen_parts)
    video, _, text = rows(family_dir)
    if kind == "known video":
        policy(packed(policy, family_dir, video))
    batch = {"text": (text,), "dummy": ()}.get(kind, (video,))
    policy(packed(policy, family_dir, *batch))[0].sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in policy.parameters())


@pytest.mark.parametrize("frozen_parts", [("vision_tower",), BOTH])
def test_a_frozen_tower_reads_the_pixels_where_they_are(
    make_policy: Callable[..., PackedPolicy], family_dir: Path, frozen_parts: tuple[str, ...]
) -> None:
    policy = make_policy(*frozen_parts)
    video, image, _ = rows(family_dir)
    batch = packed(policy, family_dir, video, image)
    patches, grids = policy._features._chosen(batch, range(len(batch.clips)))
    assert patches is batch.patches and grids is batch.grid_thw
