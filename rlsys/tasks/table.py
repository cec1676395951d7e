"""The task table: for each task its prompts, how answers are parsed, and its scores with their weights.

A new task is a new row of `TASKS`, and a scorer in `reward_servers.scorers.scorers` if none fits.
Sources of the rewards that each task adds up: VideoChat-R1 §3.3; for boxes and tasks with clues, VTTS §A.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from types import MappingProxyType

from rlsys.config.answers import Reading
from rlsys.config.run import ConfigError, RewardConfig
from rlsys.tasks import answers, truths
from rlsys.tasks import prompts as prompt_texts
from rlsys.tasks.answers import UNKNOWN, Answer, Boxes, Choice, Expected
from rlsys.tasks.readings import READERS
from rlsys.types import ImageSpec, Json, PromptItem

JUDGED = frozenset({"event_recall", "event_precision", "event_f1", "consistency"})
"""Scorers that the judge computes."""
GROUP_SCORES = frozenset({"order_contrast"})
"""Scores that need a whole group, which the caller of the reward servers adds; the servers never see them."""
CORRECT_ABOVE = 0.1
"""A response counts as correct when its task's `correctness` score is above this, as in Video-R1's code."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """One score of a task.

    scorer: key of `reward_servers.scorers.scorers.SCORERS`, or a member of `JUDGED` or `GROUP_SCORES`.
    block: the block of the response that it reads; None means the whole response.
    weight: its weight in the reward unless the config sets another; an optional score has the source's own weight.
    is_optional: computed only if `reward.weights` names it.  source: the paper that it comes from.
    """

    scorer: str
    block: str | None = None
    weight: float = 1.0
    is_optional: bool = False
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: one row of the table.

    prompts: (style, think) -> template; its fields are those of `rlsys.tasks.prompts`.
    blocks: the blocks of a response after <think>, in order, each with its kind of answer, a key of
    `rlsys.tasks.readings.READERS`.
    read_truth: annotation -> true answer by block; raises ValueError for a broken annotation.
    scores: score name (`format`, `iou`, `accuracy`, …) -> how it is computed, optional ones included.
    correctness: the score that measures how correct a response is.
    """

    name: str
    prompts: Mapping[tuple[str, bool], str]
    blocks: Mapping[str, str]
    read_truth: Callable[[Json], Mapping[str, Answer]]
    scores: Mapping[str, Scoring]
    correctness: str

    def parse(self, text: str, reading: Reading = "paper", expected: Expected = UNKNOWN) -> dict[str, Answer | None]:
        """Return the answer in each block of `text`, wherever the block is; None if it cannot be read."""
        return {name: READERS[kind].read(text, name, reading, expected) for name, kind in self.blocks.items()}

    def is_well_formed(
        self, text: str, *, think: bool, reading: Reading = "paper", expected: Expected = UNKNOWN
    ) -> bool:
        """Return whether `text` is <think>…</think> (if requested), then the task's blocks, all of them readable."""
        contents = answers.whole_layout(text, ("think", *self.blocks) if think else tuple(self.blocks))
        return contents is not None and all(
            READERS[kind].of(reading)(contents[name], expected) is not None for name, kind in self.blocks.items()
        )


def expected_answer(truth: Json, options: Sequence[str], read: Mapping[str, Answer]) -> Expected:
    """Return the information about a row for its readers. read: the answers that its task read from `truth`.

    Options are written `(A) …` or `A. …`, or all without letters, which are then A, B, … in order.
    Raises ValueError if the true option is none of them.
    """
    choice = next((answer.letter for answer in read.values() if isinstance(answer, Choice)), "")
    num_boxes = next((len(answer.boxes) for answer in read.values() if isinstance(answer, Boxes)), 0)
    has_box = isinstance(truth, Mapping) and "box" in truth
    found = [_OPTION.fullmatch(option) for option in options]
    lettered = tuple((match.group(1) or match.group(2), match.group(3)) for match in found if match)
    if len(lettered) < len(options):
        lettered = tuple(zip(ascii_uppercase, options, strict=False))
    if choice and lettered and choice not in dict(lettered):
        raise ValueError(f"truth answer ({choice}): the options are {', '.join(dict(lettered))}.")
    return Expected(
        options=lettered, letter=choice, num_boxes=num_boxes, frame=truths.box_frame(truth) if has_box else None
    )


_OPTION = re.compile(r"(?:\(([A-Z])\)|([A-Z])[).:、])\s*(.*)", re.DOTALL)

_FORMAT = {"format": Scoring(scorer="layout", source="VideoChat-R1, eq. 3")}
_CONSISTENCY = {"consistency": Scoring(scorer="consistency", is_optional=True, source="Video-R2, arXiv:2511.23478")}
_LENGTH = {
    "length_bonus": Scoring(scorer="length_bonus", weight=0.2, is_optional=True, source="Video-R1, arXiv:2503.21776")
}
# not for tasks annotated with times: shuffling the frames changes the right answer
_ORDER = {
    "order_contrast": Scoring(
        scorer="order_contrast", weight=0.3, is_optional=True, source="T-GRPO of Video-R1, arXiv:2503.21776"
    )
}


def _scores(own: Mapping[str, Scoring], optional: Mapping[str, Scoring] = MappingProxyType({})) -> dict[str, Scoring]:
    """Return a task's own scores and further optional ones, together with those that all but captioning have."""
    return {**_FORMAT, **own, **_LENGTH, **optional, **_CONSISTENCY}


def _time_iou(block: str) -> dict[str, Scoring]:
    return {"iou": Scoring(scorer="spans_iou", block=block, source="VideoChat-R1, eq. 4")}


def _box_iou(block: str, name: str = "iou") -> dict[str, Scoring]:
    return {name: Scoring(scorer="mean_box_iou", block=block, source="VideoChat-R1, eq. 4; VTTS §A.1")}


def _accuracy(scorer: str, *, source: str = "VideoChat-R1, eq. 5") -> dict[str, Scoring]:
    return {"accuracy": Scoring(scorer=scorer, block="answer", source=source)}


def _times_in_reasoning(block: str) -> dict[str, Scoring]:
    """Return the optional scores of tasks whose `block` holds periods."""
    return {
        "cited_times": Scoring(
            scorer="cited_times",
            block=block,
            is_optional=True,
            source="Video-R2, arXiv:2511.23478; Open-o3 Video, arXiv:2510.20579",
        ),
        "anchor_progress": Scoring(
            scorer="anchor_progress", block=block, is_optional=True, source="TAR-TVG, arXiv:2508.07683"
        ),
    }


_ROWS = (
    Task(
        name="temporal_grounding",
        prompts=prompt_texts.TEMPORAL_GROUNDING,
        blocks={"answer": "period"},
        read_truth=truths.period,
        scores=_scores(_time_iou("answer"), _times_in_reasoning("answer")),
        correctness="iou",
    ),
    Task(
        name="tracking",
        prompts=prompt_texts.TRACKING,
        blocks={"answer": "boxes"},
        read_truth=truths.tracked_boxes,
        scores=_scores(_box_iou("answer")),
        correctness="iou",
    ),
    Task(
        name="spatial_grounding",
        prompts=prompt_texts.SPATIAL_GROUNDING,
        blocks={"answer": "box"},
        read_truth=truths.one_box,
        scores=_scores(_box_iou("answer")),
        correctness="iou",
    ),
    Task(
        name="spatiotemporal_grounding",
        prompts=prompt_texts.SPATIOTEMPORAL_GROUNDING,
        blocks={"answer": "period", "box": "box"},
        read_truth=truths.period_and_box,
        scores=_scores(_time_iou("answer") | _box_iou("box", "box_iou"), _times_in_reasoning("answer")),
        correctness="iou",
    ),
    Task(
        name="multiple_choice",
        prompts=prompt_texts.MULTIPLE_CHOICE,
        blocks={"answer": "choice"},
        read_truth=truths.choice,
        scores=_scores(_accuracy("same_choice"), _ORDER),
        correctness="accuracy",
    ),
    Task(
        name="grounded_qa",
        prompts=prompt_texts.GROUNDED_QA,
        blocks={"answer": "choice", "glue": "periods"},
        read_truth=truths.choice_and_periods,
        scores=_scores(_time_iou("glue") | _accuracy("same_choice"), _times_in_reasoning("glue")),
        correctness="accuracy",
    ),
    Task(
        name="spatial_qa",
        prompts=prompt_texts.SPATIAL_QA,
        blocks={"answer": "choice", "box": "box"},
        read_truth=truths.choice_and_box,
        scores=_scores(_box_iou("box") | _accuracy("same_choice"), _ORDER),
        correctness="accuracy",
    ),
    Task(
        name="spatiotemporal_qa",
        prompts=prompt_texts.SPATIOTEMPORAL_QA,
        blocks={"answer": "choice", "glue": "periods", "box": "box"},
        read_truth=truths.choice_periods_and_box,
        scores=_scores(
            _time_iou("glue") | _box_iou("box", "box_iou") | _accuracy("same_choice"), _times_in_reasoning("glue")
        ),
        correctness="accuracy",
    ),
    Task(
        name="numeric_qa",
        prompts=prompt_texts.NUMERIC_QA,
        blocks={"answer": "number"},
        read_truth=truths.number,
        scores=_scores(_accuracy("relative_accuracy", source="VSI-Bench, arXiv:2412.14171, eq. 1"), _ORDER),
        correctness="accuracy",
    ),
    Task(
        name="video_quality",
        prompts=prompt_texts.VIDEO_QUALITY,
        blocks={"answer": "phrase"},
        read_truth=truths.phrase,
        scores=_scores(_accuracy("same_phrase"), _ORDER),
        correctness="accuracy",
    ),
    Task(
        name="captioning",
        prompts=prompt_texts.CAPTIONING,
        blocks={"answer": "caption"},
        read_truth=truths.caption,
        scores={
            **_FORMAT,
            "recall": Scoring(scorer="event_recall", block="answer", source="VideoChat-R1, eq. 6"),
            "precision": Scoring(
                scorer="event_precision", block="answer", is_optional=True, source="Dream-1k, arXiv:2407.00634"
            ),
            "f1": Scoring(scorer="event_f1", block="answer", is_optional=True, source="Dream-1k, arXiv:2407.00634"),
            **_ORDER,
            **_CONSISTENCY,
        },
        correctness="recall",
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({row.name: row for row in _ROWS})
OTHER_NAMES: Mapping[str, str] = MappingProxyType({"quality": "video_quality"})
"""Further names of tasks, taken wherever a task is named."""


def task_name(name: str) -> str:
    """Return the table's name of the task `name`, which may be one of `OTHER_NAMES`."""
    return OTHER_NAMES.get(name, name)


def task_named(name: str) -> Task:
    """Return the row called `name`. Raises ValueError naming the known tasks when there is none."""
    if task_name(name) not in TASKS:
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}.")
    return TASKS[task_name(name)]


def default_names(task: str) -> tuple[str, ...]:
    """Return the scores of `task` that are not optional, in the table's order; () for an unknown task."""
    return tuple(name for name, how in _scores_of(task).items() if not how.is_optional)


def judged_scores(task: str) -> frozenset[str]:
    """Return the scores of `task` that the judge computes, optional ones included; none for an unknown task."""
    return frozenset(name for name, how in _scores_of(task).items() if how.scorer in JUDGED)


def _scores_of(task: str) -> Mapping[str, Scoring]:
    known = TASKS.get(task_name(task))
    return {} if known is None else known.scores


def prompt_text(item: PromptItem, *, think: bool, style: str) -> str:
    """Return the text of the prompt for `item` behind its media, its note first.

    style: "full" explains the output format; "terse" is the bare question, for models that learn the format
    by imitation. Raises ValueError for an unknown task or style, or a truth that the template needs and cannot use.
    """
    task = task_named(item.task)
    if (style, think) not in task.prompts:
        styles = sorted({known for known, _ in task.prompts})
        raise ValueError(f"task {task.name} has no prompt style {style!r}; the styles are {', '.join(styles)}.")
    template = task.prompts[style, think]
    if not item.options:
        template = template.replace("\n{options}", "")
    medium = "image" if item.media and isinstance(item.media[0], ImageSpec) else "video"
    fields = {"question": item.question.strip(), "options": "\n".join(item.options), "medium": medium}
    if "{first_box}" in template:
        fields["first_box"] = truths.first_box(item.truth)
    if "{num_frames}" in template:
        count = len(item.truth)
        fields["num_frames"] = _COUNTS.get(count, str(count))
    if "{box_unit}" in template:
        fields |= _box_fields(item.truth, medium)
    text = template.format_map(fields).strip()
    return f"{item.note}\n{text}" if item.note else text


_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}


def _box_fields(truth: Json, medium: str) -> dict[str, str]:
    """Return the prompt's fields for the unit of the true box: in words, and an example box."""
    frame = truths.box_frame(truth)
    if frame is None:
        return {"box_unit": prompt_texts.FRACTIONS.format(medium=medium), "box_example": "[0.10, 0.25, 0.45, 0.80]"}
    width, height = frame
    sides = {"medium": medium, "width": f"{width:g}", "height": f"{height:g}"}
    corners = (0.10 * width, 0.25 * height, 0.45 * width, 0.80 * height)
    example = ", ".join(f"{corner:.0f}" for corner in corners)
    return {"box_unit": prompt_texts.PIXELS.format_map(sides), "box_example": f"[{example}]"}


def score_weights(task: str, reward: RewardConfig) -> dict[str, float]:
    """Return the weight of each score to request for `task`: the table's scores in order, then the user's own.

    `reward.weights` overrides the table's weights. Optional scores and those of `reward.scorers` are included only if
    it names them. Weight 0 keeps a score in the records and out of the reward.
    """
    row = task_named(task)
    named = next((weights for name, weights in reward.weights.items() if task_name(name) == row.name), {})
    scores = row.scores
    weights = {
        name: named.get(name, how.weight) for name, how in scores.items() if name in named or not how.is_optional
    }
    own = {name: weight for name, weight in named.items() if name in reward.scorers and name not in scores}
    return weights | own


def check_weights(reward: RewardConfig) -> None:
    """Raise ConfigError listing every unusable entry of `reward.weights` and `reward.scorers`."""
    problems = list(_scorer_problems(reward.scorers))
    for task, weights in reward.weights.items():
        if task_name(task) not in TASKS:
            problems.append(f"reward.weights.{task}: no such task; the tasks are {', '.join(TASKS)}.")
            continue
        known = [*task_named(task).scores, *reward.scorers]
        for name, weight in weights.items():
            if name not in known:
                problems.append(f"reward.weights.{task}.{name}: no such score; {task} has {', '.join(known)}.")
            elif not math.isfinite(weight) or weight < 0:
                problems.append(f"reward.weights.{task}.{name}={weight}: use a finite number, 0 or above.")
        if not any(score_weights(task, reward).values()):
            problems.append(f"reward.weights.{task}: all weights are 0, so all rewards are equal; raise one.")
    if problems:
        raise ConfigError("\n".join(problems))


_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def _scorer_problems(scorers: Mapping[str, str]) -> Iterator[str]:
    taken = {name for task in TASKS.values() for name in task.scores}
    for name, reference in scorers.items():
        if not name.isidentifier():
            yield f"reward.scorers.{name}: a score's name consists of letters, digits and _; rename it."
        elif name in taken:
            yield f"reward.scorers.{name}: the task table has a score of that name; choose another name."
        if not _REFERENCE.fullmatch(reference):
            yield f"reward.scorers.{name}={reference!r}: write it as package.module:function."
