"""The task table: what is asked, how the answer is read, what is scored with what weight.

A new task is a new row of `TASKS` (and a scorer in `reward_servers.scorers` when none fits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rlsys import prompt_texts, truths
from rlsys.answers import Answer, last_block, read_boxes, read_choice, read_period, read_periods, whole_layout
from rlsys.config import ConfigError, RewardConfig
from rlsys.types import Json, PromptItem


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """One score of a task.

    scorer: key of `reward_servers.scorers.SCORERS`.  block: the block of the response it reads; None
    means the layout of the whole response.  weight: its share of the reward unless the config says otherwise.
    """

    scorer: str
    block: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row.

    prompts: (style, think) -> template with {question}, {options} and {first_box}.
    blocks: the blocks a response consists of after <think>, in order, each with the reader of its content.
    read_truth: annotation -> true answer per block; raises ValueError saying what is wrong with it.
    scores: score name (`format`, `iou`, `accuracy`, …) -> how it is computed.
    """

    name: str
    prompts: Mapping[tuple[str, bool], str]
    blocks: Mapping[str, Callable[[str], Answer | None]]
    read_truth: Callable[[Json], Mapping[str, Answer]]
    scores: Mapping[str, Scoring]

    def parse(self, text: str) -> dict[str, Answer | None]:
        """The answer in each block of `text`, wherever the block is; None where it cannot be read."""
        contents = {name: last_block(text, name) for name in self.blocks}
        return {name: None if content is None else self.blocks[name](content) for name, content in contents.items()}

    def is_well_formed(self, text: str, *, think: bool) -> bool:
        """True when `text` is <think>…</think> (if asked for), then the task's blocks, each of them readable."""
        contents = whole_layout(text, ("think", *self.blocks) if think else tuple(self.blocks))
        return contents is not None and all(reader(contents[name]) is not None for name, reader in self.blocks.items())


_ROWS = (
    Task(
        name="temporal_grounding",
        prompts=prompt_texts.TEMPORAL_GROUNDING,
        blocks={"answer": read_period},
        read_truth=truths.period,
        scores={"format": Scoring(scorer="layout"), "iou": Scoring(scorer="spans_iou", block="answer")},
    ),
    Task(
        name="grounded_qa",
        prompts=prompt_texts.GROUNDED_QA,
        blocks={"answer": read_choice, "glue": read_periods},
        read_truth=truths.choice_and_periods,
        scores={
            "format": Scoring(scorer="layout"),
            "iou": Scoring(scorer="spans_iou", block="glue"),
            "accuracy": Scoring(scorer="same_choice", block="answer"),
        },
    ),
    Task(
        name="tracking",
        prompts=prompt_texts.TRACKING,
        blocks={"answer": lambda text: read_boxes(text, truths.NUM_TRACKED_FRAMES)},
        read_truth=truths.tracked_boxes,
        scores={"format": Scoring(scorer="layout"), "iou": Scoring(scorer="mean_box_iou", block="answer")},
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({row.name: row for row in _ROWS})


def task_named(name: str) -> Task:
    """The row called `name`; ValueError naming the known tasks when there is none."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not known; the tasks are {', '.join(TASKS)}.")
    return TASKS[name]


def prompt_text(item: PromptItem, *, think: bool, style: str) -> str:
    """What the model is asked about `item`, media excluded.

    style "full" spells out the output format; "terse" is the bare question, for models that learn the format
    by imitation. Raises ValueError for an unknown task or style, or a truth that the template needs and cannot use.
    """
    task = task_named(item.task)
    if (style, think) not in task.prompts:
        styles = sorted({known for known, _ in task.prompts})
        raise ValueError(f"prompt style {style!r} is not known to {task.name}; the styles are {', '.join(styles)}.")
    template = task.prompts[style, think]
    first_box = truths.first_box(item.truth) if "{first_box}" in template else ""
    return template.format(question=item.question.strip(), options="\n".join(item.options), first_box=first_box)


def score_weights(task: str, reward: RewardConfig) -> dict[str, float]:
    """Score name -> weight of `task`, in the table's order: the table's weight unless `reward.weights` names the score.

    Weight 0 keeps the score in the records and out of the reward.
    """
    replaced = reward.weights.get(task, {})
    return {name: replaced.get(name, scoring.weight) for name, scoring in task_named(task).scores.items()}


def check_weights(reward: RewardConfig) -> None:
    """Raises ConfigError listing every entry of `reward.weights` that no run could use."""
    problems: list[str] = []
    for task, weights in reward.weights.items():
        if task not in TASKS:
            problems.append(f"reward.weights.{task}: no such task; the tasks are {', '.join(TASKS)}.")
            continue
        known = TASKS[task].scores
        for name, weight in weights.items():
            if name not in known:
                problems.append(f"reward.weights.{task}.{name}: no such score; {task} has {', '.join(known)}.")
            elif not math.isfinite(weight) or weight < 0:
                problems.append(f"reward.weights.{task}.{name}={weight}: use a finite number, 0 or above.")
        if not any(score_weights(task, reward).values()):
            problems.append(f"reward.weights.{task}: all weights are 0, so every response is as good; raise one.")
    if problems:
        raise ConfigError("\n".join(problems))
