"""The ledger: what became of every prompt that the sampler issued - trained on once, replaced, or skipped.

A copy is in every checkpoint; the one in the run's folder is complete up to the newest step.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.errors import CheckpointError
from rlsys.files import write_whole
from rlsys.loop.collect import Collected
from rlsys.runs.records.checkpoint import STATE_FILE, load_state
from rlsys.tasks.table import task_named

log = logging.getLogger(__name__)

LEDGER_FILE = "ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The prompts that one step consumed, and its outcome.

    trained, replaced: prompt index -> prompt id.  skipped: prompt index -> reason.
    versions: the oldest and the newest weights that sampled a token which was trained on.
    reward: mean over valid responses.  pass_rates: prompt index -> mean correctness score of the group's valid
    responses, for groups that have one, replaced ones included.  weights_digest: of the weights after the step, see
    `rlsys.weights.manifest.digest`.
    """

    step: int
    trained: dict[int, str]
    replaced: dict[int, str]
    skipped: dict[int, str]
    versions: tuple[int, int]
    reward: float
    weights_digest: str
    pass_rates: dict[int, float] = field(default_factory=dict)

    @property
    def prompt_indices(self) -> list[int]:
        """All prompts that the step consumed."""
        return [*self.trained, *self.replaced, *self.skipped]


class Ledger:
    """The entries of a run, each appended to a file in the run's folder when it is added.

    entries: those of the steps that are already done. A failed write does not stop the run: the copy in the checkpoint
    is the authoritative one, and the file is rewritten as soon as the disk allows.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        self._folder, self._is_behind = Path(folder), False
        self.entries = list(entries)
        self._write_all()

    def add(self, one: Entry) -> None:
        """Append the entry of the next step."""
        self.entries.append(one)
        if self._is_behind:
            self._write_all()
            return
        try:
            with (self._folder / LEDGER_FILE).open("a") as file:
                file.write(_line(one))
        except OSError as error:
            self._lags(error)

    def go_back(self, step: int) -> None:
        """Remove the entries of all steps after `step`."""
        self.entries = [one for one in self.entries if one.step <= step]
        self._write_all()

    def _write_all(self) -> None:
        try:
            write_whole(self._folder / LEDGER_FILE, "".join(map(_line, self.entries)), synced=False)
            self._is_behind = False
        except OSError as error:
            self._lags(error)

    def _lags(self, error: OSError) -> None:
        if not self._is_behind:
            log.warning("%s cannot be written, will retry at the next step: %s", self._folder / LEDGER_FILE, error)
        self._is_behind = True


def entry(step: int, collected: Collected, *, reward: float, weights_digest: str) -> Entry:
    """Return the ledger entry of a step."""
    versions = [rollout.token_versions for scored in collected.groups for rollout in scored.rollouts]
    return Entry(
        step=step,
        trained={d: g.group.item.prompt_id for d, g in zip(collected.prompt_indices, collected.groups, strict=True)},
        replaced={
            d: g.group.item.prompt_id for d, g in zip(collected.replaced_indices, collected.replaced, strict=True)
        },
        skipped={one.prompt_index: f"{one.reason}: {one.detail}" for one in collected.skipped},
        versions=(min(int(found.min()) for found in versions), max(int(found.max()) for found in versions)),
        reward=reward,
        weights_digest=weights_digest,
        pass_rates=dict(_pass_rates(collected)),
    )


def _pass_rates(collected: Collected) -> Iterator[tuple[int, float]]:
    prompt_indices = (*collected.prompt_indices, *collected.replaced_indices)
    for prompt_index, scored in zip(prompt_indices, (*collected.groups, *collected.replaced), strict=True):
        name = task_named(scored.group.item.task).correctness
        if name in scored.score_names and scored.is_valid.any():
            scores = scored.scores[scored.is_valid, scored.score_names.index(name)]
            yield prompt_index, float(np.mean(scores, dtype=np.float64))


def problems(entries: Sequence[Entry], prompts_consumed: int) -> list[str]:
    """Return every violation of the invariant that each of the first `prompts_consumed` prompts was used exactly once.

    Steps must also follow each other without gaps. [] means that the ledger is consistent.
    """
    found = [
        f"step {after.step} follows step {before.step}"
        for before, after in zip(entries, entries[1:], strict=False)
        if after.step != before.step + 1
    ]
    uses = Counter(prompt_index for one in entries for prompt_index in one.prompt_indices)
    found += [
        f"prompt {prompt_index} was used {count} times" for prompt_index, count in sorted(uses.items()) if count > 1
    ]
    found += [f"prompt {prompt_index} was lost" for prompt_index in range(prompts_consumed) if prompt_index not in uses]
    return found + [
        f"prompt {prompt_index} is ahead of the sampler at {prompts_consumed}"
        for prompt_index in sorted(uses)
        if prompt_index >= prompts_consumed
    ]


def count(entries: Sequence[Entry]) -> str:
    """Return a one-line summary: prompts consumed, trained on, replaced and skipped."""
    trained = sum(len(one.trained) for one in entries)
    replaced = sum(len(one.replaced) for one in entries)
    skipped = sum(len(one.skipped) for one in entries)
    return (
        f"{trained + replaced + skipped} prompts in {len(entries)} steps: {trained} trained on, "
        f"{replaced} replaced, {skipped} skipped"
    )


def write(folder: Path, entries: Iterable[Entry]) -> None:
    """Write the ledger into a checkpoint's folder."""
    (folder / LEDGER_FILE).write_text("".join(map(_line, entries)))


def read(folder: Path) -> list[Entry]:
    """Read the ledger of a checkpoint or a run. Raises CheckpointError if the folder has none.

    An incomplete last line, left by a run that was killed while writing, is ignored.
    """
    file = folder / LEDGER_FILE
    try:
        lines = file.read_text().splitlines(keepends=True)
        trees = [json.loads(line) for line in lines if line.endswith("\n")]
        return [_entry(tree) for tree in trees]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{file}: there is no ledger; give a checkpoint or a run's output_dir.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read as a ledger of this version of rlsys: {error!r}") from error


def report(folder: Path) -> tuple[str, list[str]]:
    """Return the summary line and the problems of the ledger of a run or a checkpoint."""
    entries = read(folder)
    if (folder / STATE_FILE).exists():
        prompts_consumed = load_state(folder).prompts_consumed
    else:
        prompts_consumed = 1 + max((prompt_index for one in entries for prompt_index in one.prompt_indices), default=-1)
    return count(entries), problems(entries, prompts_consumed)


def _line(one: Entry) -> str:
    return json.dumps(asdict(one)) + "\n"


def _entry(tree: dict[str, Any]) -> Entry:
    # JSON object keys are strings
    found = {"pass_rates": {}, **tree}
    parts = {
        name: {int(prompt_index): value for prompt_index, value in found[name].items()}
        for name in ("trained", "replaced", "skipped", "pass_rates")
    }
    return Entry(
        step=tree["step"],
        versions=tuple(tree["versions"]),
        reward=tree["reward"],
        weights_digest=tree["weights_digest"],
        **parts,
    )
