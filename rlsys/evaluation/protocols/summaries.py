"""Metrics of multiple-choice sets: accuracy over all rows, over groups of rows, and means over groups."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.texts import label
from rlsys.evaluation.protocols.weighted import Metrics, Weighted, mean_of

STATIC = ("VG", "DM", "SR")
"""R4D-Bench's categories of still scenes; the others are dynamic."""
_R4D = MappingProxyType(
    {
        "VG": "3d video grounding",
        "DM": "dimension measurement",
        "SR": "spatial relationship",
        "R": "rotational",
        "C": "counting",
        "T": "translational",
        "FP": "false positive",
        "SA": "speed acceleration",
        "DP": "displacement path length",
    }
)


def accuracy(weighted: Weighted) -> Metrics:
    """Return the accuracy over all rows."""
    return {"accuracy": weighted.mean("correct")}


def accuracy_by(*names: str) -> Callable[[Weighted], Metrics]:
    """Return a summary: accuracy over all rows, and over the rows of each value of the labels `names`."""

    def summary(weighted: Weighted) -> Metrics:
        metrics = accuracy(weighted)
        for name in names:
            for value, where in weighted.groups(lambda row, name=name: label(row, name)).items():  # type: ignore[misc]
                metrics[f"accuracy/{value}"] = weighted.mean("correct", where=where)
        return metrics

    return summary


def duration_class(row: Answered) -> str | None:
    """Return the class of a Video-MME row: its label, else by its length (to 2 min, 15 min and above)."""
    for name in ("duration", "duration_class", "duration_category", "split"):
        if row.labels.get(name) in ("short", "medium", "long"):
            return str(row.labels[name])
    seconds = row.labels.get("duration_s")
    if not isinstance(seconds, int | float):
        return None
    return "short" if seconds <= 120 else "medium" if seconds <= 900 else "long"


def videomme(weighted: Weighted) -> Metrics:
    """Return the accuracy over all rows and over short, medium and long videos."""
    classes = {name: weighted.mean("correct", where=where) for name, where in weighted.groups(duration_class).items()}
    return {**accuracy(weighted), **{f"accuracy/{name}": values for name, values in classes.items()}}


def mvbench(weighted: Weighted) -> Metrics:
    """Return the mean over subtasks of their accuracies, the accuracy over all rows ("micro") and of each subtask."""
    subtasks = weighted.groups(lambda row: label(row, "subtask", "task_type", "question_type", "category"))
    values = {name: weighted.mean("correct", where=where) for name, where in subtasks.items()}
    micro = weighted.mean("correct")
    return {
        "accuracy": mean_of(list(values.values())) if values else micro,
        "micro": micro,
        **{f"accuracy/{name}": accuracies for name, accuracies in values.items()},
    }


def r4d_category(row: Answered) -> str | None:
    """Return the short name of a row's R4D-Bench category, from its short or long name; None if it has neither."""
    written = label(row, "category", "question_type", "subtask") or ""
    if written.upper() in _R4D:
        return written.upper()
    plain = " ".join(re.findall(r"[a-z0-9]+", written.lower().replace(" and ", " ").replace("_and_", "_")))
    for short, long in _R4D.items():
        if plain and (plain == long or (short == "SR" and plain.startswith("spatial relation"))):
            return short
    return None


def r4d_bench(weighted: Weighted) -> Metrics:
    """Return the accuracy over all rows, over static and dynamic ones, of each category, and the mean over categories.

    The paper's average is that over all rows: it lies between static and dynamic as their sizes do.
    """
    groups = weighted.groups(r4d_category)
    values = {name: weighted.mean("correct", where=where) for name, where in groups.items()}
    metrics = accuracy(weighted)
    for split, is_static in (("static", True), ("dynamic", False)):
        members = [where for name, where in groups.items() if (name in STATIC) == is_static]
        if members:
            metrics[f"accuracy/{split}"] = weighted.mean("correct", where=np.logical_or.reduce(members))
    metrics |= {f"accuracy/{name}": values[name] for name in _R4D if name in values}
    return metrics | ({"category_mean": mean_of(list(values.values()))} if values else {})
