"""What a headless browser makes of a page."""

from __future__ import annotations

import html
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.pace import patience

BROWSER = os.environ.get("RLSYS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium: set RLSYS_CHROMIUM to its command")


def shown(page: Path, state: str) -> str:
    """Return what a browser has made of a page. state: as in the page's address behind #."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"{page.as_uri()}#{state}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=patience(60.0), check=True).stdout
    return html.unescape(found)


def opened_row(page: Path, row_id: str) -> str:
    """Return what a browser shows of the rows of a page, this one opened."""
    return shown(page, f"open={row_id}").partition('id="rows"')[2].partition("<script")[0]
