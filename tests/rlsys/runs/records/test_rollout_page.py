"""The page of a step's responses: what stands in it, and that no step fails for it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.algorithm.trajectories import trajectories
from rlsys.config.run import RunConfig, parse
from rlsys.data.video.decode import decode
from rlsys.runs.records.rollout_page import record_rollout_page, write_rollout_page
from rlsys.types import ClipRef, LaterRound, ScoredGroup
from tests.support.factories import make_group, make_scored
from tests.support.video_files import make_spec, make_video

VERDICTS = {"judge": "llm", "recall": [{"event": "a dog barks", "entailed": True, "reason": "said"}], "precision": []}


def scored_group(folder: Path, name: str, rewards: list[float], is_valid: list[bool] | None = None) -> ScoredGroup:
    """Return a group about the part from 1 s of a numbered clip, with its decoded frames."""
    spec = make_spec(make_video(folder / f"{name}.mp4"), window_s=(1.0, 5.0), max_frames=8)
    clip = decode(spec)
    group = make_group(f"{name}:0", num_rollouts=len(rewards))
    item = replace(group.item, media=(spec,), source=name, labels={"video": f"{name}.mp4"})
    group = replace(group, item=item, clips=(ClipRef(info=clip.info, frames=clip.frames),))
    return replace(make_scored(group, rewards, is_valid), evidence=(VERDICTS, *(None,) * (len(rewards) - 1)))


def rows_of(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def make_config(folder: Path, **tracking: int) -> RunConfig:
    tree = {"output_dir": str(folder), "model": {"path": "model"}, "tracking": tracking}
    return parse(tree, source="test")


class Logged:
    """The part of a tracker that pages use."""

    def __init__(self) -> None:
        self.files: list[tuple[str, str | None]] = []

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.files.append((path.name, folder))


def test_all_responses_of_the_first_groups_are_shown_with_frames_spans_scores_and_verdicts(tmp_path: Path) -> None:
    groups = [scored_group(tmp_path, name, [0.25, 1.0, 0.5]) for name in ("a", "b", "c")]
    page = write_rollout_page(tmp_path / "page.html", 7, groups, num_groups=2, timeout_s=1.0)
    rows = rows_of(page)
    assert [row["id"] for row in rows] == [f"{name}:0/{index}" for name in ("a", "b") for index in range(3)]
    first, second = rows[0], rows[1]
    assert first["spans"] == {"true": [[1.0, 2.0]], "answered": [[1.0, 2.0]]}
    assert (first["group"], first["score"], first["scores"]) == ("a", 0.25, {"reward": 0.25, "iou": 0.25})
    assert first["verdicts"] == VERDICTS and second["verdicts"] is None
    # the frames stand on the page once, at times that count from the start of the part, as spans do
    assert [frame["time_s"] for frame in first["frames"]] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert (second["frames"], second["frames_of"]) == ([], "a:0/0")
    assert page.read_text().count("data:image/jpeg") == 2 * 8
    assert "<td>iou</td><td class=n>0.583</td><td class=n>0.250</td><td class=n>1.000</td>" in page.read_text()


def test_a_response_that_was_not_scored_says_why_and_changes_no_figure(tmp_path: Path) -> None:
    group = scored_group(tmp_path, "a", [0.25, 1.0], [True, False])
    page = write_rollout_page(tmp_path / "page.html", 1, [group], num_groups=8, timeout_s=1.0)
    row = rows_of(page)[1]
    assert (row["score"], row["scores"], row["reason"]) == (None, {}, "judge timed out")
    assert "<td>reward</td><td class=n>0.250</td>" in page.read_text()
    assert "<b>not scored</b> 1" in page.read_text()


def test_a_response_that_was_asked_again_has_its_rounds_each_with_its_frames_and_score(tmp_path: Path) -> None:
    first = scored_group(tmp_path, "a", [0.25, 1.0])
    again = scored_group(tmp_path, "b", [0.75])
    clue = {"periods": [[1.0, 2.0]], "boxes": []}
    page = write_rollout_page(
        tmp_path / "page.html",
        7,
        [trajectories(first, [LaterRound(sample_index=0, number=2, scored=again, clue=clue, reason="")])],
        num_groups=1,
        timeout_s=1.0,
    )
    asked_again, asked_once = rows_of(page)
    one, two = asked_again["rounds"]
    assert (one["round"], one["score"], two["round"], two["score"]) == (1, 0.25, 2, 0.75)
    assert asked_again["score"] == 0.75 and asked_again["scores"]["reward"] == 0.75, "the last answer counts"
    assert (one["clue"]["spans"], two["clue"]["spans"]) == ([], [[1.0, 2.0]])
    assert len(one["parts"][0]["frames"]) == len(two["parts"][0]["frames"]) == 8
    assert "rounds" not in asked_once and asked_once["frames_of"] == asked_again["id"]


def test_pages_are_written_every_so_many_steps(tmp_path: Path) -> None:
    groups = [scored_group(tmp_path, "a", [0.0, 1.0])]
    logged, config = Logged(), make_config(tmp_path / "run", page_every_steps=3)
    for step in range(1, 8):
        record_rollout_page(logged, config, step, groups)  # type: ignore[arg-type]
    assert logged.files == [("step_000003.html", "pages"), ("step_000006.html", "pages")]
    assert sorted(file.name for file in (tmp_path / "run" / "pages").iterdir()) == [
        "step_000003.html",
        "step_000006.html",
    ]


@pytest.mark.parametrize("tracking", [{"page_every_steps": 0}, {"page_every_steps": 1, "samples_per_step": 0}])
def test_pages_can_be_switched_off(tmp_path: Path, tracking: dict[str, int]) -> None:
    config = make_config(tmp_path / "run", **tracking)
    record_rollout_page(Logged(), config, 1, [make_scored(make_group(), [0.0] * 4)])  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_no_step_fails_for_a_page_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pages").write_text("a file where the folder should be")
    groups = [make_scored(make_group(), [0.0] * 4, [False] * 4)]
    record_rollout_page(Logged(), make_config(tmp_path, page_every_steps=1), 1, groups)  # type: ignore[arg-type]
    assert "step 1: the page of its responses could not be written" in caplog.text
    assert np.isnan(groups[0].rewards).all()
