"""Wording of the prompts: (style, think) -> template, per task.

"full" tells a general model what to do and how to write the answer; it carries the information of
VideoChat-R1's prompts in our own words. "terse" is the bare question.
"""

from __future__ import annotations

_THINK = "First work out the answer step by step between <think> and </think>. Then write "
_NO_THINK = "Write nothing but "


def _variants(full: str, terse: str) -> dict[tuple[str, bool], str]:
    """`full` has one {lead} at the place where reasoning is asked for or ruled out."""
    return {
        ("full", True): full.replace("{lead}", _THINK),
        ("full", False): full.replace("{lead}", _NO_THINK),
        ("terse", True): terse,
        ("terse", False): terse,
    }


# the sentence may be a statement ("person opens the door.") or a question ("When does …?"): both are quoted
TEMPORAL_GROUNDING = _variants(
    full=(
        "Find the part of the video that this is about: “{question}”\n"
        "{lead}the time in seconds at which that part starts and the time at which it ends, with two decimals, "
        "in this form: <answer>12.54 to 17.83</answer>"
    ),
    terse="{question}",
)

GROUNDED_QA = _variants(
    full=(
        "Answer this question about the video: {question}\n{options}\n"
        "{lead}the letter of the right option, and after it every period of the video that shows why it is right, "
        "as start and end in seconds, in this form: <answer>(B)</answer> <glue>[(5.20, 10.45), (31.00, 33.50)]</glue>"
    ),
    terse="{question}\n{options}",
)

TRACKING = _variants(
    full=(
        "The video is shown as eight frames. In the first one, this object is inside the box {first_box}: {question}\n"
        "A box is [x0, y0, x1, y1]: left, top, right and bottom edge, as fractions of the frame's width and height "
        "between 0 and 1. Follow the object through all eight frames.\n"
        "{lead}its eight boxes in the order of the frames, in this form: "
        "<answer>[[0.10, 0.25, 0.45, 0.80], [0.12, 0.25, 0.47, 0.80], …]</answer>"
    ),
    terse="{question} {first_box}",
)
