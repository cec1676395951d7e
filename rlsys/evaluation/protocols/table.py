"""The protocols by name, and those of each data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols import boxes, captions, letters, numbers, published, spans, summaries
from rlsys.evaluation.protocols.own import OWN, READINGS
from rlsys.evaluation.protocols.protocol import Protocol_, Published
from rlsys.evaluation.protocols.weighted import Metrics, Weighted
from rlsys.tasks.table import TASKS, task_name
from rlsys.types import Json

_LMMS = "lmms-eval, August 2026"
_VLMEVALKIT = "VLMEvalKit, August 2026"
_VIDEOCHAT = "VideoChat-R1, arXiv:2504.06958"


def _grounding(name: str, rule: str, figures: tuple[Published, ...] = ()) -> Protocol_:
    """Return a protocol of temporal grounding: mIoU and R@0.3, 0.5, 0.7 with >=."""
    readers: Mapping[str, tuple[Callable[[Answered, str], Json], str, str]] = {
        "paper": (spans.paper_span, _VIDEOCHAT, "last `a to b` or `a and b` in the last `<answer>`"),
        "paper_script": (
            spans.paper_script_span,
            "VideoChat-R1, src_eval/evaluate_grounding.py",
            "last `a to b` or `a and b` anywhere in the response",
        ),
        "lmms": (
            spans.lmms_span,
            f"{_LMMS}, charades_sta",
            'first clock range or `a - b` ("to" reads "-") in a sentence with start, end or happen; '
            "reversed spans are turned round",
        ),
        "timelens": (
            spans.timelens_span,
            f"{_LMMS}, timelens",
            "first two clock times, else first `a - b`, else first `a to b`, else first two numbers",
        ),
    }
    reader, source, text = readers[rule]
    return Protocol_(
        name=name,
        tasks=frozenset({"temporal_grounding"}),
        source=source,
        rule=text,
        primary="miou",
        row_score="iou",
        reader=reader,
        scorer=spans.span_scores,
        summary=spans.span_metrics,
        published=figures,
    )


def _choice(
    name: str,
    reader: Callable[[Answered, str], Json],
    summary: Callable[[Weighted], Metrics],
    *,
    source: str,
    rule: str,
    figures: tuple[Published, ...] = (),
) -> Protocol_:
    """Return a protocol of multiple choice."""
    return Protocol_(
        name=name,
        tasks=frozenset({"multiple_choice"}),
        source=source,
        rule=rule,
        primary="accuracy",
        row_score="correct",
        reader=reader,
        scorer=letters.letter_scores,
        summary=summary,
        published=figures,
    )


_GROUNDING = (
    _grounding("charades_sta/paper", "paper", published.CHARADES_STA),
    _grounding("charades_sta/lmms", "lmms"),
    _grounding("charades_sta/paper_script", "paper_script", published.CHARADES_STA),
    _grounding("activitynet/paper", "paper", published.ACTIVITYNET),
    _grounding("activitynet/lmms", "lmms"),
    _grounding("activitynet/paper_script", "paper_script", published.ACTIVITYNET),
    _grounding("timelens/lmms", "timelens"),
    _grounding("timelens/charades_lmms", "lmms"),
    _grounding("timelens/paper", "paper"),
)

_NEXTGQA = (
    Protocol_(
        name="nextgqa/official",
        tasks=frozenset({"grounded_qa"}),
        source="NExT-GQA, arXiv:2309.01327, code/TempGQA/eval_ground.py",
        rule="letter and periods as nextgqa/paper reads them; of several periods the span around them",
        primary="acc_gqa",
        row_score="correct_and_grounded",
        reader=spans.answer_and_periods,
        scorer=spans.official_scores,
        summary=spans.official_metrics,
    ),
    Protocol_(
        name="nextgqa/paper",
        tasks=frozenset({"grounded_qa"}),
        source=f"{_VIDEOCHAT}, src_eval/evaluate_gqa.py",
        rule="first letter from A to G in the first `<answer>` after usual prefixes; `[(s, e), …]`, and nothing else, "
        "in the first `<glue>`",
        primary="miou",
        row_score="iou",
        reader=spans.answer_and_periods,
        scorer=spans.union_scores,
        summary=spans.union_metrics,
        published=published.NEXTGQA,
    ),
)

_BOX_RULE = "a list of exactly as many boxes as frames, and nothing else, in the first `<answer>`"
_GOT10K = (
    Protocol_(
        name="got10k/toolkit",
        tasks=frozenset({"tracking"}),
        source="GOT-10k toolkit, arXiv:1810.11981",
        rule=_BOX_RULE,
        primary="ao",
        row_score="ao",
        reader=boxes.paper_boxes,
        scorer=boxes.toolkit_scores,
        summary=boxes.toolkit_metrics,
    ),
    Protocol_(
        name="got10k/paper",
        tasks=frozenset({"tracking"}),
        source=f"{_VIDEOCHAT}, src_eval/evaluate_track.py",
        rule=_BOX_RULE,
        primary="overlap",
        row_score="overlap",
        reader=boxes.paper_boxes,
        scorer=boxes.overlap_scores,
        summary=boxes.overlap_metrics,
        published=published.GOT10K,
    ),
)

_CHOICES = (
    _choice(
        "videomme/vlmevalkit",
        letters.vlmevalkit_letter,
        summaries.videomme,
        source=f"{_VLMEVALKIT}, Video-MME",
        rule="first of ABCD anywhere after usual prefixes are removed; where there is none a language model chooses "
        "there, here the row is wrong",
        figures=published.VIDEOMME,
    ),
    _choice(
        "videomme/lmms",
        letters.lmms_abcd,
        summaries.videomme,
        source=f"{_LMMS}, mcq_extract.py",
        rule="start, end, phrase, `(A)`, `A.`, `A:`, `A)`, `A `, anywhere, in this order; the last of equal ones",
        figures=published.VIDEOMME,
    ),
    Protocol_(
        name="mvbench",
        tasks=frozenset({"multiple_choice"}),
        source=f"MVBench, arXiv:2311.17005, check_ans; {_VLMEVALKIT}",
        rule="first word is a part of `(x)` or contains it; an empty response, right there, is wrong here",
        primary="accuracy",
        row_score="correct",
        reader=letters.mvbench_word,
        scorer=letters.mvbench_scores,
        summary=summaries.mvbench,
        published=published.MVBENCH,
    ),
    _choice(
        "mvbench/lmms",
        letters.lmms_mvbench_letter,
        summaries.mvbench,
        source=f"{_LMMS}, mvbench",
        rule="letter of a line `X. …`, else first letter from A to E, in either case, that is a word; an empty "
        "response, left out there, is wrong here",
        figures=published.MVBENCH,
    ),
    _choice(
        "perception_test",
        letters.perception_letter,
        summaries.accuracy_by("area", "tag"),
        source=f"{_LMMS}, perceptiontest",
        rule="first `\\b[A-D]\\b`",
        figures=published.PERCEPTION_TEST,
    ),
    _choice(
        "r4d_bench",
        letters.bracketed_letter,
        summaries.r4d_bench,
        source="R4D-Bench, 4D-RGPT",
        rule="first `(X)`, else first `\\bX\\b`; where there is none a letter is drawn there, here the row is wrong",
        figures=published.R4D_BENCH,
    ),
    _choice(
        "timebench",
        letters.bracketed_letter,
        summaries.accuracy,
        source="4D-RGPT §A3; its extraction is not published, that of R4D-Bench is used",
        rule="first `(X)`, else first `\\bX\\b`",
        figures=published.TIMEBENCH,
    ),
)


def _vsi(name: str, reader: Callable[[Answered, str], Json], source: str, rule: str) -> Protocol_:
    return Protocol_(
        name=name,
        tasks=frozenset({"multiple_choice", "numeric_qa"}),
        source=source,
        rule=rule,
        primary="overall",
        row_score="correct",
        reader=reader,
        scorer=numbers.vsi_scores,
        summary=numbers.vsi_metrics,
    )


_OTHERS = (
    _vsi(
        "vsi_bench",
        numbers.vsi_value,
        "VSI-Bench, arXiv:2412.14171, lmms_eval/tasks/vsibench/utils.py",
        "first word without full stops at its end, as a letter or a number",
    ),
    _vsi(
        "vsi_bench/lmms",
        numbers.lmms_vsi_value,
        f"{_LMMS}, vsibench",
        "letters as vsi_bench; first number anywhere, in digits or English words",
    ),
    Protocol_(
        name="dream1k/autodq",
        tasks=frozenset({"captioning"}),
        source="AutoDQ of Tarsier, arXiv:2407.00634",
        rule="the whole caption; its events and their entailment are the judge's",
        primary="f1",
        row_score="recall",
        reader=captions.caption_text,
        scorer=captions.caption_scores,
        summary=captions.caption_metrics,
        published=published.DREAM1K,
    ),
)

_OWN = {protocol.name: protocol for protocol in OWN}
_VIDTAB_BASE = _OWN["video_quality/paper"]
_VIDTAB = Protocol_(
    name="vidtab",
    tasks=_VIDTAB_BASE.tasks,
    source=f"{_VIDEOCHAT}, src_eval/evaluate_cls_quality_c8.py",
    rule="the whole first `<answer>`, in lower case",
    primary=_VIDTAB_BASE.primary,
    row_score=_VIDTAB_BASE.row_score,
    reader=_VIDTAB_BASE.reader,
    scorer=_VIDTAB_BASE.scorer,
    summary=_VIDTAB_BASE.summary,
    published=published.VIDTAB,
)

PROTOCOLS: Mapping[str, Protocol_] = MappingProxyType(
    {one.name: one for one in (*_GROUNDING, *_NEXTGQA, *_GOT10K, *_CHOICES, *_OTHERS, _VIDTAB, *OWN)}
)
"""Every protocol by its name."""

_OF_DATA_SET: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "charades_sta": ("charades_sta/paper", "charades_sta/lmms", "charades_sta/paper_script"),
        "activitynet": ("activitynet/paper", "activitynet/lmms", "activitynet/paper_script"),
        "timelens": ("timelens/lmms", "timelens/charades_lmms", "timelens/paper"),
        "nextgqa": ("nextgqa/official", "nextgqa/paper"),
        "got10k": ("got10k/toolkit", "got10k/paper"),
        "videomme": ("videomme/vlmevalkit", "videomme/lmms"),
        "mvbench": ("mvbench", "mvbench/lmms"),
        "perception_test": ("perception_test",),
        "vsi_bench": ("vsi_bench", "vsi_bench/lmms"),
        "dream1k": ("dream1k/autodq",),
        "vidtab": ("vidtab",),
        "r4d_bench": ("r4d_bench",),
        "timebench": ("timebench",),
    }
)
"""Data set -> its protocols, the default first."""


def protocols_for(dataset_format: str, task: str) -> tuple[str, ...]:
    """Return the names of the protocols for rows of `task` in a data set: the default, then the columns beside it.

    dataset_format: name of the data set or of its format, in any case, with or without "-" and "_"; a longer name
    counts as the data set whose name it begins with ("got10k_folder"). Other data sets have our own readings, the
    published code's first; these are the last columns of every data set. Raises ValueError for an unknown task.
    """
    task = task_name(task)
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}.")
    plain = _bare(dataset_format)
    known = next((names for name, names in _OF_DATA_SET.items() if plain.startswith(_bare(name))), ())
    theirs = tuple(name for name in known if task in PROTOCOLS[name].tasks)
    ours = tuple(f"{task}/{reading}" for reading in READINGS)
    return theirs + tuple(name for name in ours if not theirs or not name.endswith("/paper"))


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
