"""What became of every draw of the sampler: trained on once, replaced, or left out.

It is in every checkpoint, and in the run's folder up to the newest step.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsys.errors import CheckpointError
from rlsys.files import write_whole
from rlsys.loop.collect import Collected
from rlsys.runs.checkpoint import STATE_FILE, load_state

log = logging.getLogger(__name__)

LEDGER_FILE = "ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The draws that one step used up, and what came of it.

    trained, replaced: by draw, the prompt's id.  left_out: by draw, why.
    versions: of the oldest and newest weights that sampled a token which was trained on.
    reward: mean of the valid ones.  weights_digest: of the weights after the step, see `rlsys.weights.manifest.digest`.
    """

    step: int
    trained: dict[int, str]
    replaced: dict[int, str]
    left_out: dict[int, str]
    versions: tuple[int, int]
    reward: float
    weights_digest: str

    @property
    def draws(self) -> list[int]:
        """All that the step used up."""
        return [*self.trained, *self.replaced, *self.left_out]


class Ledger:
    """The entries of a run, which are in a file of its folder as soon as they are added.

    entries: those of the steps that are done already. A disk that takes nothing does not stop the run: the
    checkpoint's copy is the one that counts.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        self._folder, self._is_behind = Path(folder), False
        self.entries = list(entries)
        self._write_all()

    def add(self, one: Entry) -> None:
        """The next step's."""
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
        """Forget what came after `step`."""
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
            log.warning("%s cannot be written for now: %s", self._folder / LEDGER_FILE, error)
        self._is_behind = True


def entry(step: int, collected: Collected, *, reward: float, weights_digest: str) -> Entry:
    """What a step did."""
    versions = [rollout.token_versions for scored in collected.groups for rollout in scored.group.rollouts]
    return Entry(
        step=step,
        trained={d: g.group.item.prompt_id for d, g in zip(collected.draws, collected.groups, strict=True)},
        replaced={d: g.group.item.prompt_id for d, g in zip(collected.replaced_draws, collected.replaced, strict=True)},
        left_out={one.draw: f"{one.reason}: {one.detail}" for one in collected.left_out},
        versions=(min(int(found.min()) for found in versions), max(int(found.max()) for found in versions)),
        reward=reward,
        weights_digest=weights_digest,
    )


def problems(entries: Sequence[Entry], drawn: int) -> list[str]:
    """What contradicts that each of the first `drawn` draws was used up by one step, in order; [] when nothing does."""
    found = [
        f"step {after.step} follows step {before.step}"
        for before, after in zip(entries, entries[1:], strict=False)
        if after.step != before.step + 1
    ]
    uses = Counter(draw for one in entries for draw in one.draws)
    found += [f"draw {draw} was used {count} times" for draw, count in sorted(uses.items()) if count > 1]
    found += [f"draw {draw} was lost" for draw in range(drawn) if draw not in uses]
    return found + [f"draw {draw} is ahead of the sampler at {drawn}" for draw in sorted(uses) if draw >= drawn]


def count(entries: Sequence[Entry]) -> str:
    """How many draws the entries used up, and what for, in words."""
    trained = sum(len(one.trained) for one in entries)
    replaced = sum(len(one.replaced) for one in entries)
    left_out = sum(len(one.left_out) for one in entries)
    return (
        f"{trained + replaced + left_out} draws in {len(entries)} steps: {trained} trained on, "
        f"{replaced} replaced, {left_out} left out"
    )


def write(folder: Path, entries: Iterable[Entry]) -> None:
    """Into a checkpoint's folder."""
    (folder / LEDGER_FILE).write_text("".join(map(_line, entries)))


def read(folder: Path) -> list[Entry]:
    """From a checkpoint's or a run's folder. Raises CheckpointError when it has none.

    A last line without its end, as a run leaves that is killed while it writes, is left out.
    """
    file = folder / LEDGER_FILE
    try:
        lines = file.read_text().splitlines(keepends=True)
        trees = [json.loads(line) for line in lines if line.endswith("\n")]
        return [_entry(tree) for tree in trees]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a ledger: {error}") from error


def report(folder: Path) -> tuple[str, list[str]]:
    """What the ledger of a run's or checkpoint's folder comes to, and what is wrong with it."""
    entries = read(folder)
    if (folder / STATE_FILE).exists():
        drawn = load_state(folder).drawn
    else:
        drawn = 1 + max((draw for one in entries for draw in one.draws), default=-1)
    return count(entries), problems(entries, drawn)


def _line(one: Entry) -> str:
    return json.dumps(asdict(one)) + "\n"


def _entry(tree: dict[str, Any]) -> Entry:
    # JSON's keys are strings
    parts = {
        name: {int(draw): value for draw, value in tree[name].items()} for name in ("trained", "replaced", "left_out")
    }
    return Entry(
        step=tree["step"],
        versions=tuple(tree["versions"]),
        reward=tree["reward"],
        weights_digest=tree["weights_digest"],
        **parts,
    )
