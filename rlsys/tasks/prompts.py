"""Prompt templates of each task, by (style, think).

The style "full" explains the task and the answer format to a general model, with the information of VideoChat-R1's
prompts in our own words; "terse" is the bare question. Fields: {question}, {options}, {medium} (video or image),
{first_box}, {num_frames}, {box_unit} and {box_example}.
"""

from __future__ import annotations

_THINK = "First work out the answer step by step between <think> and </think>. Then write "
_NO_THINK = "Write nothing but "


def _variants(full: str, terse: str) -> dict[tuple[str, bool], str]:
    """Return the templates of one task. `full` has a field {lead}, which requests reasoning or excludes it."""
    return {
        ("full", True): full.replace("{lead}", _THINK),
        ("full", False): full.replace("{lead}", _NO_THINK),
        ("terse", True): terse,
        ("terse", False): terse,
    }


FRACTIONS = "as fractions of the {medium}'s width and height between 0 and 1"
PIXELS = "in pixels of the {medium}, which is {width} wide and {height} high"
_BOX = "A box is [x0, y0, x1, y1]: left, top, right and bottom edge, {box_unit}.\n"
_QUESTION = "Answer this question about the {medium}: {question}\n{options}\n"

# quoted, because it may be a statement ("person opens the door.") or a question ("When does …?")
TEMPORAL_GROUNDING = _variants(
    full=(
        "Find the part of the video that this is about: “{question}”\n"
        "{lead}the time in seconds at which that part starts and the time at which it ends, with two decimals, "
        "in this form: <answer>12.54 to 17.83</answer>"
    ),
    terse="{question}",
)

TRACKING = _variants(
    full=(
        "The video is shown as {num_frames} frames. In the first one, this object is inside the box {first_box}: "
        "{question}\n"
        "A box is [x0, y0, x1, y1]: left, top, right and bottom edge, as fractions of the frame's width and height "
        "between 0 and 1. Follow the object through all {num_frames} frames.\n"
        "{lead}its {num_frames} boxes in the order of the frames, in this form: "
        "<answer>[[0.10, 0.25, 0.45, 0.80], [0.12, 0.25, 0.47, 0.80], …]</answer>"
    ),
    terse="{question} {first_box}",
)

SPATIAL_GROUNDING = _variants(
    full=(
        "Find what this is about in the {medium}: “{question}”\n"
        + _BOX
        + "{lead}the smallest box around it, in this form: <answer>{box_example}</answer>"
    ),
    terse="{question}",
)

SPATIOTEMPORAL_GROUNDING = _variants(
    full=(
        "Find when and where in the video this is: “{question}”\n"
        + _BOX
        + "{lead}the time in seconds at which it starts and the time at which it ends, with two decimals, and after "
        "them the smallest box around it, in this form: <answer>12.54 to 17.83</answer> <box>{box_example}</box>"
    ),
    terse="{question}",
)

MULTIPLE_CHOICE = _variants(
    full=_QUESTION + "{lead}the letter of the right option, in this form: <answer>(B)</answer>",
    terse="{question}\n{options}",
)

GROUNDED_QA = _variants(
    full=(
        "Answer this question about the video: {question}\n{options}\n"
        "{lead}the letter of the right option, and after it every period of the video that shows why it is right, "
        "as start and end in seconds, in this form: <answer>(B)</answer> <glue>[(5.20, 10.45), (31.00, 33.50)]</glue>"
    ),
    terse="{question}\n{options}",
)

SPATIAL_QA = _variants(
    full=(
        _QUESTION
        + _BOX
        + "{lead}the letter of the right option, and after it the box of the part of the {medium} that shows why it "
        "is right, in this form: <answer>(B)</answer> <box>{box_example}</box>"
    ),
    terse="{question}\n{options}",
)

SPATIOTEMPORAL_QA = _variants(
    full=(
        _QUESTION
        + _BOX
        + "{lead}the letter of the right option, after it every period of the video that shows why it is right, as "
        "start and end in seconds, and last the box of what shows it, in this form: "
        "<answer>(B)</answer> <glue>[(5.20, 10.45), (31.00, 33.50)]</glue> <box>{box_example}</box>"
    ),
    terse="{question}\n{options}",
)

NUMERIC_QA = _variants(
    full=(
        "Answer this question about the {medium} with a number: {question}\n"
        "{lead}the number alone, in this form: <answer>3.5</answer>"
    ),
    terse="{question}",
)

CAPTIONING = _variants(
    full=(
        "{question}\n"
        "Say what happens in the order in which it happens: who or what is there, what each of them does, and what "
        "changes. Leave out what cannot be seen.\n"
        "{lead}the description, in this form: <answer>A woman opens a door. Then she …</answer>"
    ),
    terse="{question}",
)

# the example is not a class of any data set, so that it favours none
VIDEO_QUALITY = _variants(
    full="{question}\n{options}\n{lead}the answer you choose, in this form: <answer>your choice</answer>",
    terse="{question}\n{options}",
)
