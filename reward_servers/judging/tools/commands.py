"""The work of `rlsys judge …` for synchronous callers: a config in, lines or a report out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from reward_servers.judging.local_judge import open_judge, pumped
from reward_servers.judging.tools import calibration, rescoring
from reward_servers.judging.tools.injections import ProbeReport, probe_injections
from reward_servers.judging.tools.rescoring import Rescored, RescoreSummary
from rlsys.config.run import JudgeConfig, ScoreSettings
from rlsys.errors import UserError
from rlsys.files import write_output

_AT_ONCE = 8


def calibration_lines(path: Path, config: JudgeConfig, timeout_s: float) -> Iterator[str]:
    """Yield the agreement of the judge with the labels in `path`. See `calibration`."""

    labels = calibration.read_labels(path)

    async def calibrated() -> calibration.Calibration:
        async with open_judge(config) as judge:
            return await calibration.calibrate(judge, labels, _at_once(config), timeout_s)

    yield from asyncio.run(calibrated()).lines()


def probe_report(config: JudgeConfig, timeout_s: float) -> ProbeReport:
    """Probe the judge with predictions that give it instructions. See `injections`."""

    async def probed() -> ProbeReport:
        async with open_judge(config) as judge:
            return await probe_injections(judge, _at_once(config), timeout_s)

    return asyncio.run(probed())


def rescore_lines(
    path: Path, settings: ScoreSettings, config: JudgeConfig | None, out: Path | None, timeout_s: float
) -> Iterator[str]:
    """Yield a line for every row that changed, then a summary. See `rescoring`.

    config: of another judge; None scores the stored verdicts again.  out: where the rows go as they are now; after an
    interruption, those scored until then.
    """
    stored = rescoring.read_stored(path)
    summary = RescoreSummary(problems=stored.problems)
    if out is not None and out.exists() and out.samefile(path):
        raise UserError(f"{out}: this is the file that is read; write to another one.")
    written = []
    try:
        for row in pumped(_rescored(stored, settings, config, timeout_s)):
            summary.add(row)
            written.append(json.dumps(row.row) + "\n")
            if row.is_changed:
                flips = f", {row.num_flipped} of {row.num_events} verdicts" if row.num_flipped else ""
                yield f"line {row.line}: {_shown(row.before)} -> {_shown(row.after)}{flips}"
    finally:
        if out is not None:  # rows judged before an interruption cost money too
            write_output(out, "".join(written))
    yield from summary.lines()


async def _rescored(
    stored: rescoring.Stored, settings: ScoreSettings, config: JudgeConfig | None, timeout_s: float
) -> AsyncIterator[Rescored]:
    if config is None:
        async for row in rescoring.rescore(stored, None, settings):
            yield row
        return
    async with open_judge(config) as judge:
        async for row in rescoring.rescore(stored, judge, settings, _at_once(config), timeout_s):
            yield row


def _at_once(config: JudgeConfig) -> int:
    return config.max_concurrency if config.urls else _AT_ONCE


def _shown(outcome: float | str) -> str:
    return outcome if isinstance(outcome, str) else f"{outcome:.4f}"
