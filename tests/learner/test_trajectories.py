"""A trajectory's rounds in packed passes against each response alone behind its prompt, for every family.

Rounds share the first prompt and differ after it: segments with their own rates, and crops of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from learner.packing.shards import group_row, weighted
from rlsys.algorithm.trajectories import trajectories
from rlsys.config.run import RunConfig, parse
from rlsys.data.annotations.media import with_patches
from rlsys.data.video.decode import decode_all
from rlsys.loop.objective import PolicyGradient
from rlsys.models.model_config import patch_shape
from rlsys.models.prompts import PromptBuilder
from rlsys.perception.choose import next_turn_of
from rlsys.perception.media import whole_of
from rlsys.perception.turns import Show, item_of, shown_after
from rlsys.types import ClipRef, LaterRound, PromptItem, RolloutGroup, ScoredGroup
from tests.learner.test_exactness import (
    SPLIT,
    Setting,
    assert_equal_gradients,
    gradients,
    make_policy,
    packed_results,
    plain_results,
)
from tests.support.factories import make_scored
from tests.support.learner import make_group
from tests.support.rounding import LOGPROB
from tests.support.video_files import make_spec, make_video

TEXTS = (
    ["<answer>1.0 to 2.0</answer><box>[0.2, 0.2, 0.7, 0.8]</box>", "<answer>1.5 to 2.0</answer>"],
    ["<answer>0.5 to 1.0</answer><box>[0.5, 0.5, 0.9, 0.9]</box>"],
    ["no answer"],
)
"""The responses of each trajectory that is asked again, by round."""


def run_config(folder: Path) -> RunConfig:
    tree = {
        "output_dir": "out",
        "model": {"path": str(folder)},
        "answers": {"reading": "lenient"},
        "algorithm": {"advantage": "dr_grpo"},
        "perception": {"rounds": 3},
    }
    return parse(tree, source="test")


def asked(item: PromptItem, folder: Path, rng: np.random.Generator, size: int) -> RolloutGroup:
    """Return a group of random responses to the real prompt of an item."""
    clips = tuple(ClipRef(info=clip.info, frames=clip.frames) for clip in decode_all(item.media))
    prompt = PromptBuilder(folder, max_model_len=4096, max_tokens=64, dtype="float32").build(
        item, [clip.info for clip in clips]
    )
    group = make_group(rng, item.prompt_id, (), rng.integers(2, 9, size).tolist())
    return replace(group, item=item, prompt=prompt, clips=clips)


def trajectory_group(folder: Path, video: Path) -> ScoredGroup:
    rng, config = np.random.default_rng(5), run_config(folder)
    patch = patch_shape(folder)
    spec = make_spec(video, fps=2.0, min_frames=2, max_frames=8, max_pixels=4 * patch.px**2)
    item = PromptItem(
        prompt_id="file:0",
        task="spatiotemporal_grounding",
        question="When and where?",
        options=(),
        media=(spec,),
        truth={"period": [1.0, 2.0], "box": [0.2, 0.2, 0.7, 0.8]},
        style="terse",
    )
    (item,) = with_patches([item], patch)
    first = asked(item, folder, rng, size=4)
    whole = whole_of(item.media, [clip.info for clip in first.clips])
    later = []
    for index, texts in enumerate(TEXTS):
        for number in range(2, len(texts) + 2):
            shown = shown_after(
                item, whole, [(text, 1.0) for text in texts[: number - 1]], next_turn_of(config.perception, "lenient")
            )
            assert isinstance(shown, Show)
            group = asked(item_of(item, shown), folder, rng, size=1)
            later.append(LaterRound(sample_index=index, number=number, scored=make_scored(group, [rng.random()])))
    assert max(len(one.scored.group.clips) for one in later) > 2, "a clue makes segments"
    return trajectories(make_scored(first, rng.random(4)), later)


def test_packed_rounds_equal_each_response_alone_behind_its_prompt(
    family_dirs: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = family_dirs["bench"]
    scored = trajectory_group(folder, make_video(tmp_path / "clip.mp4", num_frames=60, fps=15.0))
    objective = PolicyGradient(run_config(folder))
    batch = objective.batch((scored,), objective.advantages((scored,)))
    rows = weighted(
        [group_row(*parts) for parts in zip(batch.groups, batch.advantages, batch.is_trained, strict=True)],
        "sequence",
        16,
    )
    assert [len(row.responses) for row in rows] == [4, 1, 1, 1, 1]
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    expected, expected_gradients = plain_results(plain, rows, folder)
    for setting in (Setting(), Setting(budget=SPLIT, num_ranks=2)):
        found, found_gradients = packed_results(make_policy(folder, setting), rows, setting, folder)
        assert found.keys() == expected.keys()
        for response, logprobs in expected.items():
            assert (found[response] - logprobs).abs().max() <= LOGPROB
        assert_equal_gradients(found_gradients, expected_gradients)
    assert gradients(plain).keys() == expected_gradients.keys()
