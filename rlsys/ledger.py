"""What became of every draw of the sampler: trained on once, replaced, or left out. Kept in the checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsys.checkpoint import CheckpointError
from rlsys.collect import Collected

LEDGER_FILE = "ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The draws that one step used up.

    trained, replaced: by draw, the prompt's id.  left_out: by draw, why.
    versions: of the oldest and newest weights that sampled a token which was trained on.
    """

    step: int
    trained: dict[int, str]
    replaced: dict[int, str]
    left_out: dict[int, str]
    versions: tuple[int, int]


def entry(step: int, collected: Collected) -> Entry:
    """What a step did."""
    versions = [rollout.token_versions for scored in collected.groups for rollout in scored.group.rollouts]
    return Entry(
        step=step,
        trained={d: g.group.item.prompt_id for d, g in zip(collected.draws, collected.groups, strict=True)},
        replaced={d: g.group.item.prompt_id for d, g in zip(collected.replaced_draws, collected.replaced, strict=True)},
        left_out={one.draw: f"{one.reason}: {one.detail}" for one in collected.left_out},
        versions=(min(int(found.min()) for found in versions), max(int(found.max()) for found in versions)),
    )


def problems(entries: Sequence[Entry], drawn: int) -> list[str]:
    """What contradicts that each of the first `drawn` draws was used up by one step, in order; [] when nothing does."""
    found = [
        f"step {after.step} follows step {before.step}"
        for before, after in zip(entries, entries[1:], strict=False)
        if after.step != before.step + 1
    ]
    uses = Counter(draw for one in entries for part in (one.trained, one.replaced, one.left_out) for draw in part)
    found += [f"draw {draw} was used {count} times" for draw, count in sorted(uses.items()) if count > 1]
    found += [f"draw {draw} was lost" for draw in range(drawn) if draw not in uses]
    return found + [f"draw {draw} is ahead of the sampler at {drawn}" for draw in sorted(uses) if draw >= drawn]


def write(folder: Path, entries: Iterable[Entry]) -> None:
    """Into a checkpoint's folder."""
    (folder / LEDGER_FILE).write_text("".join(json.dumps(asdict(one)) + "\n" for one in entries))


def read(folder: Path) -> list[Entry]:
    """From a checkpoint's folder. Raises CheckpointError when it has none."""
    file = folder / LEDGER_FILE
    try:
        trees = [json.loads(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a ledger: {error}") from error
    return [_entry(tree) for tree in trees]


def _entry(tree: dict[str, Any]) -> Entry:
    # JSON's keys are strings
    parts = {
        name: {int(draw): value for draw, value in tree[name].items()} for name in ("trained", "replaced", "left_out")
    }
    return Entry(step=tree["step"], versions=tuple(tree["versions"]), **parts)
