"""Files of one JSON object a line, of which a line that cannot be read costs that line alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlsys.files import require_regular

SHOWN = 5
_KINDS = {
    b"\x1f\x8b": "is compressed by gzip",
    b"PK\x03\x04": "is a zip file or a spreadsheet",
    b"PAR1": "is a Parquet file",
    b"SQLite": "is a database",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
    b"<": "is HTML or XML",
    b"[": "is one JSON list, or a part of one",
    b"{": "is JSON over several lines",
}
_COMMENT = re.compile(r"\s*(?:#|//|/\*)")
_COMMA = re.compile(r",\s*[}\]]?\s*\Z")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (number from 1, object or what is wrong in words) of each line that is not blank.

    Lines end in LF or CRLF, and each may begin with a byte-order mark, as in files that were joined.
    Raises OSError if the file cannot be read or is not a regular file.
    """
    require_regular(path)
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                yield number, f"not UTF-8 text ({error.reason} at byte {error.start})"
                continue
            if text.strip():
                yield number, _parsed(text)


def _parsed(text: str) -> dict[str, Any] | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _COMMENT.match(text):
            return "a comment, which JSON does not have"
        hint = "; there is a comma behind the last value" if _COMMA.search(text) else ""
        return f"not JSON ({error}{hint})"
    return value if isinstance(value, dict) else f"not an object but {type(value).__name__}"


def in_short(problems: Sequence[str]) -> str:
    """Return the first problems in one line."""
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return f"{'; '.join(problems[:SHOWN])}{more}"


def why_no_lines(path: Path) -> str:
    """Return what a file seems to be that has no usable line. Raises OSError if it cannot be read."""
    require_regular(path)
    with Path(path).open("rb") as file:
        head = file.read(24).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "is empty"
    return next((kind for start, kind in _KINDS.items() if head.startswith(start)), f"begins with {head!r}")
