"""Paths of the repository's files."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / "configs"
TEST_DATA = REPO / "tests" / "data"
