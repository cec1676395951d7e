"""`rlsys eval compare`: two evaluations of the same rows, from the files that they left."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from rlsys.errors import UserError
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.evaluated import scored
from rlsys.evaluation.pages.page import Section, Table, write_page
from rlsys.evaluation.pages.rows import page_row
from rlsys.evaluation.protocols.table import PROTOCOLS
from rlsys.evaluation.statistics.comparison import Comparison, Difference, compare
from rlsys.runs.evaluating.evaluate import RESULTS_FILE, ROWS_FOLDER
from rlsys.types import Json

log = logging.getLogger(__name__)


def compare_evaluations(first: Path, second: Path, *, common: bool, page: Path | None = None) -> list[Comparison]:
    """Print how the evaluation in `second` differs from that in `first`, and return a comparison per protocol.

    common: compare the rows that both have where they differ.  page: also write an HTML page.
    Raises UserError for a folder without an evaluation, without a common data set, or with other rows.
    """
    sides = [_results(folder) for folder in (first, second)]
    names = [name for name in sides[0] if name in sides[1]]
    if not names:
        raise UserError(
            f"{first} and {second} have no data set in common: {', '.join(sides[0])}; {', '.join(sides[1])}."
        )
    found: list[tuple[str, Comparison]] = []
    for name in names:
        rows = [_rows(folder, name) for folder in (first, second)]
        for protocol_name in sides[0][name]:
            protocol = PROTOCOLS[protocol_name]
            a, b = (scored(side, protocol) for side in rows)
            try:
                found.append((name, compare(a, b, protocol, intersect=common)))
            except ValueError as error:
                text = str(error).replace("(intersect)", "(--common)")
                raise UserError(f"{first} (a) and {second} (b), {name}: {text}") from error
    if page:
        titles = f"{second} against {first}"
        write_page(page, titles, [_section(name, one) for name, one in found], _page_rows(found, second))
        log.info("comparison in %s", page)
    _print(found, first, second)
    return [one for _, one in found]


def _results(folder: Path) -> dict[str, list[str]]:
    """Return the names of the protocols of each set of an evaluation."""
    file = Path(folder) / RESULTS_FILE
    try:
        tree = json.loads(file.read_text())
        return {
            one["name"]: [found["protocol"] for by_task in one["tasks"].values() for found in by_task]
            for one in tree["sets"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not the results of an evaluation ({error}); give the folder of `rlsys eval`."
        ) from error


def _rows(folder: Path, name: str) -> list[Answered]:
    file = Path(folder) / ROWS_FOLDER / f"{name}.jsonl"
    try:
        trees = [json.loads(line) for line in file.read_text().splitlines()]
        return [
            Answered(**{**tree, "texts": tuple(tree["texts"]), "options": tuple(tree["options"])}) for tree in trees
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the rows of an evaluation ({error}); evaluate again.") from error


def _print(found: Sequence[tuple[str, Comparison]], first: Path, second: Path) -> None:
    table = RichTable(title=f"{second} against {first}", title_justify="left")
    for heading in (
        "set",
        "protocol",
        "metric",
        "first",
        "second",
        "difference",
        "95 %",
        "p",
        "gained",
        "lost",
        "rows",
    ):
        table.add_column(heading, justify="left" if heading in ("set", "protocol", "metric") else "right")
    for name, one in found:
        table.add_row(
            name,
            one.protocol,
            one.metric,
            *_cells(one.overall),
            str(len(one.gained)),
            str(len(one.lost)),
            str(one.overall.num_rows),
        )
    Console(width=None if Console().is_terminal else 140).print(table)


def _cells(one: Difference) -> list[str]:
    low, high = one.interval
    return [
        f"{one.a:.3f}",
        f"{one.b:.3f}",
        f"{one.difference:+.3f}",
        f"{low:+.3f} to {high:+.3f}",
        f"{one.p_value:.3f}",
    ]


def _section(name: str, one: Comparison) -> Section:
    columns = ["by", "slice", "rows", "first", "second", "difference", "95 %", "p"]
    rows: list[list[str | float]] = [["all", "", str(one.overall.num_rows), *_cells(one.overall)]]
    rows += [
        [kind.replace("_", " "), part, str(difference.num_rows), *_cells(difference)]
        for kind, members in one.slices.items()
        for part, difference in members.items()
    ]
    note = f"{len(one.gained)} rows gained, {len(one.lost)} lost; paired bootstrap over videos."
    if one.only_a or one.only_b:
        note += (
            f" Left out: {len(one.only_a)} rows that only the first has, {len(one.only_b)} that only the second has."
        )
    return Section(
        title=f"{name}: {one.protocol}", tables=[Table(title=one.metric, columns=columns, rows=rows, note=note)]
    )


def _page_rows(found: Sequence[tuple[str, Comparison]], second: Path) -> list[dict[str, Json]]:
    """Return the rows that changed, by each set's first protocol, with both texts."""
    firsts = {name: one for name, one in reversed(found)}
    return [
        row
        for name, one in firsts.items()
        for row in _changed(name, one, {row.row_id: row for row in _rows(second, name)})
    ]


def _changed(name: str, one: Comparison, rows: dict[str, Answered]) -> Iterator[dict[str, Json]]:
    for kind, changes in (("gained", one.gained), ("lost", one.lost)):
        for change in changes:
            row = page_row(rows[change.row_id], group=f"{name}, {kind}", score=change.score_b)
            scores = {"first": change.score_a, "second": change.score_b}
            yield {**row, "texts": [change.text_b, change.text_a], "scores": scores}
