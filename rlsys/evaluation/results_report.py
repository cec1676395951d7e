"""Reports of an evaluation's results: a table on the terminal, Markdown, and the sections of the HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table as RichTable

from rlsys.config.evaluation import WINDOWS
from rlsys.evaluation.evaluated import THRESHOLDS
from rlsys.evaluation.pages.page import Curve, Section, Table
from rlsys.evaluation.report import COLUMNS
from rlsys.evaluation.rounds import control_title, points_of
from rlsys.types import Json

COUNTS = ("num_rows", "num_unanswered", "num_failed")
CONTROL_NAMES = {"other_video": "other video", "text_only": "no video"}
CURVES = ("model", "other_video", "text_only", "constant_interval", "constant_fraction")


def sections(results: Mapping[str, Json]) -> list[Section]:
    """Return a section for each task of each set. results: as `results.json` holds them."""
    return [
        Section(
            title=f"{one['name']}: {task}",
            facts=_facts(results, one),
            tables=[
                *_tables(protocols),
                *_rounds(protocols[0]),
                *_samples(protocols[0]),
                *_reliability(protocols[0]),
                *_slices(protocols[0]),
                *_unanswered(one),
            ],
            curves=[*_rounds_curve(protocols[0]), *_curves(protocols[0]), *_reliability_curve(protocols[0])],
        )
        for one in results["sets"]
        for task, protocols in one["tasks"].items()
        if protocols
    ]


def markdown(title: str, results: Mapping[str, Json]) -> str:
    """Return the tables of all sections as Markdown."""
    lines = [f"# {title}", ""]
    for section in sections(results):
        lines += [f"## {section.title}", "", " · ".join(f"**{label}** {text}" for label, text in section.facts), ""]
        for table in section.tables:
            lines += [f"### {table.title}", "", _line(table.columns), _line(["---"] * len(table.columns))]
            lines += [_line(row) for row in table.rows] + [""]
            lines += [table.note, ""] if table.note else []
    return "\n".join(lines)


def print_results(title: str, results: Mapping[str, Json]) -> None:
    """Print the primary metric of every protocol with its interval, controls and the strongest baseline."""
    table = RichTable(title=title, title_justify="left")
    for heading in ("set", "protocol", "metric", "value", "95 %", "other video", "no video", "best baseline", "rows"):
        table.add_column(heading, justify="left" if heading in ("set", "protocol", "metric") else "right")
    for one in results["sets"]:
        for protocols in one["tasks"].values():
            for found in protocols:
                primary = found["primary"]
                bases = [base["metrics"][primary] for base in found["baselines"] if primary in base["metrics"]]
                controls = [found["controls"].get(name, {}).get(primary) for name in CONTROL_NAMES]
                figure = found["metrics"].get(primary, {"value": math.nan})
                rows = f"{found['metrics']['num_rows']['value']:.0f}"
                cells = [figure["value"], _interval(figure), *controls, max(bases, default=None), rows]
                table.add_row(one["name"], found["protocol"], primary, *map(_cell, cells))
    Console(width=None if Console().is_terminal else 140).print(table)


def _facts(results: Mapping[str, Json], one: Mapping[str, Json]) -> list[tuple[str, str]]:
    facts = [
        ("model", str(results["model"])),
        ("rows", f"{one['num_rows']} of {one['num_rows_of_file']} ({one['num_unanswered']} without an answer)"),
        *((name, str(text)) for name, text in one["setting"].items()),
    ]
    if shown := one["shown"]:
        means = f"{shown['frames']:.1f} frames of {shown['frame_pixels']:.0f} pixels"
        facts += [
            ("on average", f"{means}, {shown['prompt_tokens']:.0f} tokens of prompt"),
            ("cut off", f"{shown['cut_off_frac']:.1%} of the answers"),
        ]
    return facts


def _tables(protocols: Sequence[Mapping[str, Json]]) -> Iterator[Table]:
    printed: list[Json] = []  # protocols of one data set have the same published figures
    for found in protocols:
        controls = {CONTROL_NAMES[name]: values for name, values in found["controls"].items()}
        bases = {base["name"].replace("_", " "): base["metrics"] for base in found["baselines"]}
        others = controls | bases
        names = [name for name in found["metrics"] if name not in COUNTS]
        rows = [
            [
                _heading(name),
                found["metrics"][name]["value"],
                _interval(found["metrics"][name]),
                *(_cell(values.get(name)) for values in others.values()),
            ]
            for name in names
        ]
        note = f"Reads {found['rule']}. Source: {found['source']}."
        if controls:
            count = next(iter(controls.values()))["num_rows"]
            own = next(iter(found["controls_same_rows"].values())).get(found["primary"], math.nan)
            note += f" Controls are of {count:.0f} rows, on which the model has {_heading(found['primary'])} {own:.3f}."
        yield Table(title=found["protocol"], columns=["metric", "value", "95 %", *others], rows=rows, note=note)
        if found["published"] and found["published"] not in printed:
            printed.append(found["published"])
            yield _published(found)


def _published(found: Mapping[str, Json]) -> Table:
    """Return the published figures, a row for each model and setting."""
    by_model: dict[tuple[str, str, str], dict[str, float]] = {}
    for one in found["published"]:
        setting = "; ".join(f"{part}: {text}" for part, text in one["setting"].items() if text) or "not stated"
        by_model.setdefault((one["model"], setting, one["source"]), {})[one["metric"]] = one["value"]
    metrics = list(dict.fromkeys(one["metric"] for one in found["published"]))
    rows = [
        [model, *(_cell(values.get(name)) for name in metrics), setting, source]
        for (model, setting, source), values in by_model.items()
    ]
    columns = ["model", *map(_heading, metrics), "setting", "source"]
    return Table(title=f"published, {found['protocol']}", columns=columns, rows=rows)


def _rounds(found: Mapping[str, Json]) -> Iterator[Table]:
    """Yield a table of what each round gained and cost, and one of the rows that later rounds made worse."""
    if not (rounds := found.get("rounds")):
        return
    primary = found["primary"]
    rows: list[list[str | float]] = [
        [
            f"round {one['round']}",
            one["metrics"].get(primary, math.nan),
            *(f"{one[name]:.1f}" for name in ("frames", "visual_tokens", "total_visual_tokens")),
            *(f"{one[name]:.3f}" for name in ("decode_s", "seconds")),
            *(str(one[name]) for name in ("num_better", "num_worse", "num_without_clue", "num_stopped")),
        ]
        for one in rounds["by_round"]
    ]
    notes = []
    for name, one in rounds["controls"].items():
        value, title = one["metrics"].get(primary, math.nan), control_title(name)
        rows.append(
            [
                f"{title} ({one['rounds']})",
                value,
                *(f"{one[key]:.1f}" for key in ("frames", "visual_tokens", "total_visual_tokens")),
                *(f"{one[key]:.3f}" for key in ("decode_s", "seconds")),
                *[""] * 4,
            ]
        )
        own = ", ".join(
            f"round {key.rpartition('_')[2]} {values.get(primary, math.nan):.3f}"
            for key, values in one["same_rows"].items()
        )
        how = "after two rounds" if name in WINDOWS else f"at the visual tokens of {one['rounds']} rounds"
        count = one["metrics"]["num_rows"]
        notes.append(f"{title}: {value:.3f} {how} of {count:.0f} rows, on which the model has {own}.")
    columns = ["round", _heading(primary), "frames", "visual tokens", "in all", "decode s", "generate s"]
    columns += ["better", "worse", "no clue", "stopped"]
    note = " ".join(
        ["Frames, tokens and seconds are means over the rows; better and worse than the round before.", *notes]
    )
    yield Table(title=f"rounds, {found['protocol']}", columns=columns, rows=rows, note=note)
    worse: list[list[str | float]] = [
        [f"round {one['round']}", row["row"], row["before"], row["after"]]
        for one in rounds["by_round"]
        for row in one["worse"]
    ]
    if worse:
        yield Table(title="rows that a later round made worse", columns=["in", "row", "before", "after"], rows=worse)


def _rounds_curve(found: Mapping[str, Json]) -> Iterator[Curve]:
    if not found.get("rounds"):
        return
    series = points_of(found)
    x_max = max(x for points in series.values() for x, _ in points) or 1.0
    yield Curve(
        title=f"rounds, {found['protocol']}",
        x_label="visual tokens a row, all rounds so far",
        y_label=_heading(found["primary"]),
        series=series,
        x_max=x_max,
    )


def _samples(found: Mapping[str, Json]) -> Iterator[Table]:
    sampled = found["sampled"]
    if not sampled:
        return
    rows: list[list[str | float]] = [[f"pass@{k}", value] for k, value in sampled["pass_at_k"].items()]
    rows += [["mean row score", sampled["mean_score"]]]
    rows += [[f"majority, {found['primary']}", sampled["majority"].get(found["primary"], math.nan)]]
    note = "A sample passes with a row score of at least 0.5; pass@k is the unbiased estimate of arXiv:2107.03374."
    yield Table(title=f"{sampled['num_samples']} samples a row", columns=["figure", "value"], rows=rows, note=note)


def _reliability(found: Mapping[str, Json]) -> Iterator[Table]:
    """Yield a table of the confidence of the answers against their scores, if it is known."""
    if not (one := found.get("reliability")):
        return
    rows: list[list[str | float]] = [
        [f"{part['low']:.1f} to {part['high']:.1f}", str(part["num_rows"]), part["confidence"], part["score"]]
        for part in one["bins"]
    ]
    rows.append(["all", str(sum(part["num_rows"] for part in one["bins"])), one["confidence"], one["score"]])
    note = (
        "Confidence is the geometric mean of the probabilities of an answer's tokens, score that of the row; "
        f"expected calibration error {one['calibration_error']:.3f}."
    )
    title = f"reliability of answers, {found['protocol']}"
    yield Table(title=title, columns=["confidence", "rows", "mean confidence", "mean score"], rows=rows, note=note)


def _reliability_curve(found: Mapping[str, Json]) -> Iterator[Curve]:
    if one := found.get("reliability"):
        yield Curve(
            title=f"reliability, {found['protocol']}",
            x_label="confidence",
            y_label="score",
            series={
                "model": [(part["confidence"], part["score"]) for part in one["bins"]],
                "score = confidence": [(0.0, 0.0), (1.0, 1.0)],
            },
        )


def _slices(found: Mapping[str, Json]) -> Iterator[Table]:
    rows: list[list[str | float]] = [
        [kind.replace("_", " "), name, str(figure["num_rows"]), figure["value"], _interval(figure)]
        for kind, members in found["slices"].items()
        for name, figure in members.items()
    ]
    if rows:
        title = f"{_heading(found['primary'])} by slice, {found['protocol']}"
        yield Table(title=title, columns=["by", "slice", "rows", _heading(found["primary"]), "95 %"], rows=rows)


def _unanswered(one: Mapping[str, Json]) -> Iterator[Table]:
    if one["unanswered"]:
        rows = [[row["row"], row["reason"]] for row in one["unanswered"]]
        note = "They count as wrong."
        if one["num_unanswered"] > len(rows):
            note += f" {one['num_unanswered'] - len(rows)} more are in the files of answers."
        yield Table(title="rows without an answer", columns=["row", "reason"], rows=rows, note=note)


def _curves(found: Mapping[str, Json]) -> Iterator[Curve]:
    series = {
        name.replace("_", " "): list(zip(THRESHOLDS, found["curves"][name], strict=True))
        for name in CURVES
        if name in found["curves"]
    }
    if series:
        yield Curve(title=f"recall, {found['protocol']}", x_label="IoU", y_label="share of rows", series=series)


def _heading(metric: str) -> str:
    return COLUMNS.get(metric, metric.replace("_", " "))


def _interval(figure: Mapping[str, float]) -> str:
    low, high = figure.get("low", math.nan), figure.get("high", math.nan)
    return "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _cell(value: float | str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else f"{value:.3f}"


def _line(cells: Sequence[str | float]) -> str:
    texts = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"
