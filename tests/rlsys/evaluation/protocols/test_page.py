"""The page on evaluation says of each protocol what the code says."""

from __future__ import annotations

import pytest

from rlsys.evaluation.protocols.own import OWN
from rlsys.evaluation.protocols.table import PROTOCOLS
from tests.support.paths import REPO

PAGE = (REPO / "docs" / "evaluation.md").read_text()
PUBLISHED_RULES = sorted(set(PROTOCOLS) - {protocol.name for protocol in OWN})


@pytest.mark.parametrize("name", PUBLISHED_RULES)
def test_a_protocol_stands_on_the_page_with_its_rule_and_source(name: str) -> None:
    protocol = PROTOCOLS[name]
    line = next(line for line in PAGE.splitlines() if f"| `{name}` |" in line and line.count("|") > 4)
    assert protocol.rule in line
    assert line.endswith(f"| {protocol.source} |")


@pytest.mark.parametrize("name", [name for name in PUBLISHED_RULES if PROTOCOLS[name].published])
def test_published_figures_stand_on_the_page_in_per_cent(name: str) -> None:
    for figure in PROTOCOLS[name].published:
        lines = [line for line in PAGE.splitlines() if line.startswith(f"| {figure.model} |")]
        assert any(f"| {100 * figure.value:.1f} |" in line for line in lines), figure
