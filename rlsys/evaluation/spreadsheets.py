"""Read the first sheet of an xlsx file, without a package for it: VLMEvalKit stores its predictions so.

Source: ECMA-376, part 1, SpreadsheetML.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_COLUMN = re.compile(r"[A-Z]{1,3}")
Cell = str | float


def sheet_rows(path: Path) -> Iterator[dict[int, Cell]]:
    """Yield the rows of the first sheet: column from 0 -> text or number; empty cells are left out.

    Raises ValueError for a file that is no such spreadsheet, OSError for one that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shared = _shared_texts(archive)
            name = min(
                (one for one in archive.namelist() if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", one)), key=_order
            )
            with archive.open(name) as sheet:
                for _, element in ElementTree.iterparse(sheet):
                    if element.tag == f"{_MAIN}row":
                        yield _cells(element, shared)
                        element.clear()
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError) as error:
        raise ValueError(f"not a spreadsheet ({error})") from error


def _order(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _shared_texts(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    tree = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
    return ["".join(text.text or "" for text in item.iter(f"{_MAIN}t")) for item in tree.iter(f"{_MAIN}si")]


def _cells(row: ElementTree.Element, shared: list[str]) -> dict[int, Cell]:
    cells: dict[int, Cell] = {}
    column = -1
    for cell in row.iter(f"{_MAIN}c"):
        letters = _COLUMN.match(cell.get("r", ""))
        column = _column(letters.group()) if letters else column + 1
        value = _value(cell, shared)
        if value is not None:
            cells[column] = value
    return cells


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _value(cell: ElementTree.Element, shared: list[str]) -> Cell | None:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return "".join(text.text or "" for text in cell.iter(f"{_MAIN}t"))
    written = cell.findtext(f"{_MAIN}v")
    if written is None:
        return None
    if kind == "s":
        return shared[int(written)]
    try:
        return float(written) if kind == "n" else written
    except ValueError:
        return written
