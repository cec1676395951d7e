"""Write one HTML page that holds everything it shows: tables, curves, and rows that can be filtered and opened."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlsys.files import write_output
from rlsys.types import Json

CURVE_WIDTH, CURVE_HEIGHT, MARGIN = 420, 220, 36
MARKED = 8
COLOURS = ("#1f6feb", "#d1242f", "#8250df", "#1a7f37", "#bf8700", "#57606a")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. rows: texts and numbers, as many as columns.  note: a sentence under it, or ""."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Curves over one x axis. series: points (x, y) in order, by name.  x_max: the x axis runs from 0 to it.

    The y axis runs from 0 to 1. Points of a series with at most `MARKED` of them are shown as circles.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    x_max: float = 1.0

    def lines(self) -> list[tuple[str, str, str]]:
        """Return (name, colour, points in SVG's form) of each series."""
        width, height = CURVE_WIDTH - 2 * MARGIN, CURVE_HEIGHT - 2 * MARGIN
        return [
            (
                name,
                COLOURS[index % len(COLOURS)],
                " ".join(f"{MARGIN + x / self.x_max * width:.1f},{MARGIN + (1 - y) * height:.1f}" for x, y in points),
            )
            for index, (name, points) in enumerate(self.series.items())
        ]

    def ticks(self) -> list[tuple[float, str, str]]:
        """Return (share of the axis, label of x, label of y)."""
        shares = (0, 0.25, 0.5, 0.75, 1)
        return [
            (share, f"{share * self.x_max:g}" if self.x_max <= 1 else f"{share * self.x_max:.0f}", f"{share:g}")
            for share in shares
        ]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page above the rows. facts: label and text of what a figure depends on."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    curves: Sequence[Curve] = ()


def write_page(path: Path, title: str, sections: Sequence[Section], rows: Sequence[Mapping[str, Json]]) -> Path:
    """Write the page and return its path. rows: as `rlsys.evaluation.pages.rows.page_row` makes them.

    Texts of rows and tables may contain anything: the page shows them and never runs them.
    """
    environment = Environment(
        loader=PackageLoader("rlsys.evaluation.pages", "."), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template("page.html").render(
        title=title,
        sections=sections,
        rows=_as_script(rows),
        num_rows=len(rows),
        number=lambda value: f"{value:.3f}" if isinstance(value, float) else value,
        width=CURVE_WIDTH,
        height=CURVE_HEIGHT,
        margin=MARGIN,
        marked=MARKED,
    )
    write_output(path, text.encode(errors="replace"))
    return path


def _as_script(rows: Sequence[Mapping[str, Json]]) -> str:
    """Return the rows as JSON for a <script> element, which nothing in it can end."""
    text = json.dumps(list(rows), default=list)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
