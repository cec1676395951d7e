"""`rlsys eval` of an endpoint, killed in the middle: it continues, and no answered row is asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.stack.test_end_to_end import rlsys
from tests.support.judge_fault_server import Fault, FaultServer
from tests.support.pace import patience
from tests.support.paths import REPO
from tests.support.video_files import make_video

NUM_ROWS, CONCURRENCY, KILLED_AFTER = 8, 2, 3


def write_rows(folder: Path) -> Path:
    queries = {}
    for index in range(NUM_ROWS):
        make_video(folder / f"clip{index}.mp4", num_frames=20)
        queries[f"clip{index}"] = {"duration": 2.0, "timestamps": [[0.5, 1.5]], "sentences": [f"row {index} happens."]}
    (folder / "rows.json").write_text(json.dumps(queries))
    return folder / "rows.json"


def asked(server: FaultServer) -> Counter[str]:
    """Return how often each row was asked for, by the number in its question."""
    texts = [part["text"] for seen in server.seen for part in seen.body["messages"][-1]["content"] if "text" in part]
    return Counter(text.partition("row ")[2][0] for text in texts)


def lines_in(file: Path) -> list[str]:
    return file.read_text().splitlines()[1:] if file.exists() else []


def test_a_killed_evaluation_continues_and_no_answered_row_is_asked_twice(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    with FaultServer(delay_s=0.2) as server:
        server.rule = lambda seen: Fault(
            content="<answer>0.5 to 1.5</answer>", delay_s=0.0 if not seen.number else None
        )
        settings = {
            "output_dir": tmp_path / "out",
            "data.videos": tmp_path,
            "data.decode_workers": 1,
            "evaluation.sets": json.dumps([{"name": "rows", "annotations": str(rows)}]),
            "evaluation.controls": "[]",
            "evaluation.num_samples": 1,
            "evaluation.page_rows": 1,
            "evaluation.endpoint.model": "served",
            "evaluation.endpoint.concurrency": CONCURRENCY,
        }
        command = [
            "configs/demo.yaml",
            "--endpoint",
            server.url,
            *(f"{key}={value}" for key, value in settings.items()),
        ]
        answers = tmp_path / "out" / "evaluation" / "answers" / "rows" / "greedy.jsonl"
        with (tmp_path / "log").open("w") as log:
            first = subprocess.Popen(
                [sys.executable, "-m", "rlsys.commands.app", "eval", *command],
                cwd=REPO,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ),
            )
            deadline = time.monotonic() + patience(120.0)
            while len(lines_in(answers)) < KILLED_AFTER:
                assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.01)
            first.send_signal(signal.SIGKILL)
            first.wait()
        kept = lines_in(answers)
        assert KILLED_AFTER <= len(kept) < NUM_ROWS, "it was killed in the middle"
        result = rlsys("eval", *command)
        assert result.returncode == 0, result.stdout + result.stderr
        whole = lines_in(answers)
        assert whole[: len(kept)] == kept
        ids = [json.loads(line)["row_id"] for line in whole]
        assert len(ids) == len(set(ids)) == NUM_ROWS
        # a row whose answer was under way when the process was killed has to be asked again, no other
        again = [row for row, times in asked(server).items() if times > 1]
        assert len(asked(server)) == NUM_ROWS and len(again) <= CONCURRENCY
        assert not {f"rows:clip{row}/0" for row in again} & {json.loads(line)["row_id"] for line in kept}
    results = json.loads((tmp_path / "out" / "evaluation" / "results.json").read_text())
    (grounding,) = (found for one in results["sets"] for found in one["tasks"].values())
    assert grounding[0]["metrics"]["miou"]["value"] == 1.0
