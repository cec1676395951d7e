"""The documentation site builds without a warning, and a browser that shows it needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.paths import REPO

pytestmark = pytest.mark.slow

LOADED_BY = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "object": ("data",),
}
LINKS_THAT_LOAD_NOTHING = {"canonical", "next", "prev", "alternate", "license"}


class Loads(HTMLParser):
    """Collects the addresses that a browser fetches by itself, and the classes of all elements."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.classes.update(values.get("class", "").split())
        if tag == "link" and set(values.get("rel", "").split()) <= LINKS_THAT_LOAD_NOTHING:
            return
        self.addresses += [values[name] for name in LOADED_BY.get(tag, ()) if values.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_asset_of_a_page_lies_in_the_site(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text())
        for address in loads.addresses:
            assert not re.match(r"\w+:|//", address) or address.startswith("data:"), f"{page.name} loads {address}"
            # the page of errors is written for the root of a web server
            where = site / address.lstrip("/") if address.startswith("/") else page.parent / address
            assert address.startswith("data:") or Path(str(where).split("?")[0]).exists(), f"{page.name}: no {address}"
        assert "mermaid" not in loads.classes, f"{page.name}: the theme fetches Mermaid from a CDN; use an SVG"


def test_no_style_sheet_fetches_from_elsewhere(site: Path) -> None:
    for sheet in site.rglob("*.css"):
        found = re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)\s]+", sheet.read_text())
        assert found is None, f"{sheet.name}: {found.group() if found else ''}"


def test_every_page_can_be_reached_and_searched(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text()
    home = (site / "index.html").read_text()
    for page in (REPO / "docs").rglob("*.md"):
        address = page.relative_to(REPO / "docs").with_suffix(".html").as_posix()
        assert f'"{address}"' in index or f'"location":"{address}' in index, f"{address} is not in the search index"
        assert f'href="{address}"' in home, f"{address} is not in the navigation of mkdocs.yml"
