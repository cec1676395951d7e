"""`rlsys eval`: a model, a served model or another system's answers, measured on data sets."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rlsys.config.data import metric_name
from rlsys.config.evaluation import Control
from rlsys.config.run import ConfigError, RunConfig
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.answering.responders import Responder
from rlsys.evaluation.evaluated import EvaluatedSet, results_of
from rlsys.evaluation.pages.page import write_page
from rlsys.evaluation.results_report import markdown, print_results, sections
from rlsys.evaluation.rounds import write_rounds_curve
from rlsys.files import why_not_writable, write_whole
from rlsys.models.folder import content_digest
from rlsys.runs.assemble import judge_captions, prompt_builder
from rlsys.runs.check import check_evaluation
from rlsys.runs.evaluating.answering import ChosenSet, answer_sets, chosen_sets, predicted_sets
from rlsys.runs.evaluating.equal_tokens import chosen_controls
from rlsys.runs.evaluating.page_rows import page_rows
from rlsys.runs.evaluating.responder import open_responder
from rlsys.runs.inputs.hub_paths import with_local_files
from rlsys.runs.records.checkpoint import find, load_state
from rlsys.runs.records.checkpoint_manifest import verify_model
from rlsys.runs.records.run_file import RUN_FILE, read_run_file
from rlsys.runs.records.run_lock import OutputDirUnusable, run_lock
from rlsys.tracking.store_address import sqlite_uri
from rlsys.tracking.tracker import Tracker
from rlsys.types import Json

log = logging.getLogger(__name__)

RESULTS_FILE, PAGE_FILE, MARKDOWN_FILE = "results.json", "report.html", "report.md"
RUN_ID_FILE = "mlflow_run_id"
ROWS_FOLDER = "rows"
EVALUATED_TAG = "rlsys.evaluated_run_id"


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What the command line adds to the config.

    datasets: names of the sets of `evaluation.sets` to evaluate; () takes all.
    out: folder for answers and reports; None: `evaluation` in output_dir.
    run, step: a run whose checkpoint is evaluated, of this step or the newest.  adapter: folder of a LoRA adapter.
    predictions: a file with the answers of another system.
    """

    datasets: tuple[str, ...] = ()
    out: Path | None = None
    run: Path | None = None
    step: int | None = None
    adapter: Path | None = None
    predictions: Path | None = None


def run_evaluation(config: RunConfig, options: EvalOptions) -> Path:
    """Evaluate as configured, write the reports, record them in MLflow, and return the folder of the reports."""
    if config.perception.rounds > 1 and config.evaluation.endpoint.url and options.predictions is None:
        raise ConfigError(
            f"perception.rounds={config.perception.rounds} with evaluation.endpoint.url="
            f"{config.evaluation.endpoint.url}: an endpoint takes one frame rate for all videos of a request, "
            "so later rounds would have wrong times; set perception.rounds=1, or evaluate the model's folder."
        )
    checkpoint = _checkpoint(options)
    if checkpoint:
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": checkpoint / "model"})})
    config = with_local_files(config, is_needed=partial(_is_needed, config, options))
    chosen = chosen_sets(config, options.datasets, needs_videos=options.predictions is None)
    out = options.out or config.output_dir / "evaluation"
    with run_lock(out):
        if why := why_not_writable(out):  # before any model is loaded
            raise OutputDirUnusable(f"{out}: {why}; free space there, or evaluate into another folder (--out).")
        if options.predictions:
            name, evaluated = str(options.predictions), predicted_sets(chosen, options.predictions)
        else:
            name = config.evaluation.endpoint.url or str(config.model.path)
            if not config.evaluation.endpoint.url:
                for folder in filter(None, (config.model.path, options.adapter)):
                    verify_model(folder)
                check_evaluation(config, chosen).raise_problems()
            controls = _controls(config, chosen)
            config = config.model_copy(
                update={"evaluation": config.evaluation.model_copy(update={"controls": controls})}
            )
            model = _model_identity(config, options)
            evaluated = answer_sets(config, chosen, out, model, lambda: _opened(config, options), controls)
        evaluated = with_verdicts(config, evaluated)
        results = {"model": name, "seed": config.seed, "sets": [results_of(one, config.seed) for one in evaluated]}
        if _read(out / RESULTS_FILE) != json.loads(json.dumps(results)):
            (out / RUN_ID_FILE).unlink(missing_ok=True)  # a record in MLflow is not changed: another run
        write_reports(config, out, f"Evaluation of {name}", evaluated, results)
        if not (out / RUN_ID_FILE).exists():
            write_whole(out / RUN_ID_FILE, _record(config, out, evaluated, results, checkpoint) + "\n")
    log.info("report in %s", out / PAGE_FILE)
    print_results(f"Evaluation of {name}", results)
    return out


def _is_needed(config: RunConfig, options: EvalOptions, field: str) -> bool:
    """Return whether an evaluation uses the file that a config key names; training data and other sets it does not."""
    if field.startswith("model."):
        return options.predictions is None and config.evaluation.endpoint.url is None
    if field == "data.videos":
        return options.predictions is None and any(one.videos is None for one in config.evaluation.sets)
    _, _, rest = field.partition("evaluation.sets.")
    if not rest:
        return False
    number, _, name = rest.partition(".")
    is_chosen = not options.datasets or config.evaluation.sets[int(number)].given_name in options.datasets
    return is_chosen and (name != "videos" or options.predictions is None)


def _controls(config: RunConfig, chosen: Sequence[ChosenSet]) -> tuple[Control, ...]:
    prompts = None if config.evaluation.endpoint.url else prompt_builder(config)
    return chosen_controls(config, [item for one in chosen for item in one.asked], prompts)


def _checkpoint(options: EvalOptions) -> Path | None:
    if options.run is None:
        if options.step is not None:
            raise ConfigError(f"--step {options.step} needs --run, the folder of the run whose checkpoint it is.")
        return None
    named = options.run if options.step is None else options.run / "checkpoints" / f"step_{options.step:06d}"
    return find(named)


def _read(results: Path) -> Json:
    """Return the results of an earlier evaluation, None if there are none."""
    try:
        return json.loads(results.read_text())
    except (OSError, ValueError):
        return None


def _opened(config: RunConfig, options: EvalOptions) -> AbstractContextManager[Responder]:
    return open_responder(config, options.adapter)


def _model_identity(config: RunConfig, options: EvalOptions) -> dict[str, str]:
    endpoint = config.evaluation.endpoint
    if endpoint.url:
        return {"endpoint": f"{endpoint.url} {endpoint.model or ''}, frames as {endpoint.frames}, {endpoint.encoding}"}
    return {
        "model": f"{content_digest(config.model.path)}, {config.model.dtype}",
        "adapter": content_digest(options.adapter) if options.adapter else "none",
    }


def with_verdicts(config: RunConfig, evaluated: Sequence[EvaluatedSet]) -> list[EvaluatedSet]:
    """Return the sets with the judge's verdicts on the first text of each caption."""

    def judged(rows: Sequence[Answered]) -> list[Answered]:
        captions = [row for row in rows if row.task == "captioning" and row.texts and row.truth is not None]
        verdicts = dict(zip((row.row_id for row in captions), judge_captions(config, captions), strict=True))
        return [replace(row, verdicts=verdicts.get(row.row_id)) for row in rows]

    return [replace(one, answered={mode: judged(rows) for mode, rows in one.answered.items()}) for one in evaluated]


def write_reports(
    config: RunConfig, out: Path, title: str, evaluated: Sequence[EvaluatedSet], results: Mapping[str, Json]
) -> None:
    """Write `results.json`, `report.md`, `report.html`, `rows/SET.jsonl` and plots of rounds into `out`."""
    for one in evaluated:
        lines = (json.dumps(asdict(row)) + "\n" for row in one.answered["greedy"])
        write_whole(out / ROWS_FOLDER / f"{one.name}.jsonl", "".join(lines))
    write_whole(out / RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    write_whole(out / MARKDOWN_FILE, markdown(title, results))
    for name, found in _with_rounds(results):
        write_rounds_curve(out / name, found["protocol"], found)
    rows = [row for one in evaluated for row in page_rows(config, one)]
    write_page(out / PAGE_FILE, title, sections(results), rows)


def _with_rounds(results: Mapping[str, Json]) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """Yield the name of the plot and the figures of the first protocol of each task with several rounds."""
    for one in results["sets"]:
        for task, protocols in one["tasks"].items():
            if protocols and protocols[0].get("rounds"):
                yield f"rounds_{metric_name(one['name'])}_{task}.png", protocols[0]


def metrics_of(results: Mapping[str, Json]) -> dict[str, float]:
    """Return the figures that MLflow gets, by name: every metric of each set's first protocol, others' primary ones."""
    found: dict[str, float] = {}
    for one in results["sets"]:
        for protocols in one["tasks"].values():
            for index, by_protocol in enumerate(protocols):
                place = f"eval/{one['name']}" if index == 0 else f"eval/{one['name']}/{by_protocol['protocol']}"
                names = by_protocol["metrics"] if index == 0 else [by_protocol["primary"]]
                for name in names:
                    key = "/".join(metric_name(part) for part in f"{place}/{name}".split("/"))
                    found[key] = by_protocol["metrics"][name]["value"]
                for of_round in by_protocol.get("rounds", {}).get("by_round", ()):
                    place_of_round = f"{place}/round_{of_round['round']}/{by_protocol['primary']}"
                    key = "/".join(metric_name(part) for part in place_of_round.split("/"))
                    found[key] = of_round["metrics"].get(by_protocol["primary"], math.nan)
    return found


def _record(
    config: RunConfig,
    out: Path,
    evaluated: Sequence[EvaluatedSet],
    results: Mapping[str, Json],
    checkpoint: Path | None,
) -> str:
    """Record the evaluation as an MLflow run of its own, beside the run that it is of, and return its id."""
    tracking, tags, state = config.tracking, {"rlsys.command": "eval"}, load_state(checkpoint) if checkpoint else None
    if checkpoint:
        run = checkpoint.parent.parent
        tags[EVALUATED_TAG] = read_run_file(run).mlflow_run_id if (run / RUN_FILE).exists() else ""
        if tracking.uri is None and (run / "mlflow.db").exists():
            tracking = tracking.model_copy(update={"uri": sqlite_uri(run / "mlflow.db")})
    config = config.model_copy(update={"tracking": tracking, "output_dir": out})
    figures = metrics_of(results)
    with Tracker(config, tags=tags) as tracker:
        for one in evaluated:
            tracker.log_dataset(one.name, one.digest, str(one.source.annotations), one.num_rows, "evaluation")
        tracker.log_step(state.step if state else 0, figures)
        for file in (RESULTS_FILE, MARKDOWN_FILE, PAGE_FILE, *(name for name, _ in _with_rounds(results))):
            tracker.log_artifact(out / file, "evaluation")
        if state and (run_id := tags[EVALUATED_TAG]):
            report, digest = f"evaluation/{PAGE_FILE}", state.weights_digest
            tracker.log_evaluated(run_id, step=state.step, weights_digest=digest, figures=figures, report=report)
        return tracker.run_id
