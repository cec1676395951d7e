"""The report of `rlsys data check` as lines."""

from __future__ import annotations

from pathlib import Path

from rlsys.config.data import DataConfig, Format
from rlsys.data.inspection.report import inspect, report_lines


def report(path: Path, format: Format, videos: Path | None = None) -> list[str]:
    data = DataConfig(format=format)
    return list(report_lines(path, data, inspect(path, videos, data)))
