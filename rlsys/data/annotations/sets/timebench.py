"""TimeBench: how many seconds have passed in a video, with wrong options at 0.25, 0.5, 2 and 4 times the truth.

Source: 4D-RGPT, §A3, which asks it without a cue, with the frames' times in the prompt, and with times drawn on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from rlsys.config.run import DataConfig
from rlsys.data.annotations.media import video_spec
from rlsys.data.video.decode import decode
from rlsys.data.video.errors import AnnotationError, ClipError
from rlsys.files import in_memory, write_whole
from rlsys.types import Clip, Json

Cue = Literal["none", "prompts", "marks"]
CUES: tuple[str, ...] = get_args(Cue)
FACTORS = (0.25, 0.5, 2.0, 4.0)
"""Wrong options over the right one."""
QUESTION = "How many seconds have passed in the input video?"


def write_timebench(
    names: Sequence[str],
    videos: Path,
    out: Path,
    *,
    cue: Cue,
    data: DataConfig,
    seed: int = 0,
    track: Callable[[Sequence[str]], Iterable[str]] = lambda names: names,
) -> tuple[Path, list[str]]:
    """Write `out/timebench.jsonl` with a row for each video; return its path and why videos have none.

    names: of the videos in the folder `videos`.  data: rates and budgets of the frames, which cues name.
    With cue "marks" the frames with their times are written to `out/frames`, which is then the folder of videos.
    Raises AnnotationError if no video can be decoded.
    """
    rows: list[dict[str, Json]] = []
    problems: list[str] = []
    for index, name in enumerate(track(names)):
        try:
            clip = decode(video_spec(str(videos / name), data))
        except ClipError as error:
            problems.append(str(error))
            continue
        shown = _write_marked(clip, name, out) if cue == "marks" else name
        generator = np.random.default_rng((seed, index))
        row = {"video": shown, **question_of(clip, cue, generator), "cue": cue}
        rows.append({**row, "fps": _rate(clip)} if cue == "marks" else row)
    if not rows:
        raise AnnotationError(f"{videos}: no video could be decoded; {problems[0] if problems else 'it has none'}")
    path = out / "timebench.jsonl"
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path, problems


def question_of(clip: Clip, cue: Cue, generator: np.random.Generator) -> dict[str, Json]:
    """Return question, options, answer and duration of a clip, the options in an order drawn from `generator`."""
    length_s = clip.info.duration_s
    texts = [_seconds(factor * length_s) for factor in (1.0, *FACTORS)]
    order = generator.permutation(len(texts))
    options = [f"({letter}) {texts[index]}" for letter, index in zip("ABCDE", order, strict=True)]
    question = QUESTION
    if cue == "prompts":
        times = ", ".join(f"{time_s:.2f}s" for time_s in clip.info.times_s)
        question = f"The frames of the video were taken at these times: {times}. {QUESTION}"
    if cue == "marks":
        question = f"Each frame shows its time in seconds in the upper left corner. {QUESTION}"
    answer = f"({'ABCDE'[int(np.flatnonzero(order == 0)[0])]})"
    return {"question": question, "options": options, "answer": answer, "duration": round(length_s, 3)}


def _seconds(value: float) -> str:
    return f"{value:.1f} seconds" if value >= 1 else f"{value:.3f} seconds"


def _rate(clip: Clip) -> float:
    return round(1 / float(np.diff(clip.info.times_s).mean()), 6)


def _write_marked(clip: Clip, name: str, out: Path) -> str:
    """Write the frames of a clip, each with its time, as images of a folder; return the folder's name."""
    folder = Path("frames") / Path(name).with_suffix("")
    for index, image in enumerate(marked(clip)):
        write_whole(
            out / folder / f"{index:05d}.png",
            in_memory(partial(image.save, format="png")),
            synced=False,
        )
    return folder.as_posix()


def marked(clip: Clip) -> Iterator[Image.Image]:
    """Yield the frames of a clip with their times drawn in the upper left corner."""
    for frame, time_s in zip(clip.frames, clip.info.times_s, strict=True):
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        size = max(12, image.height // 8)
        text = f"{time_s:.2f}s"
        box = draw.textbbox((2, 2), text, font_size=size)
        draw.rectangle((0, 0, box[2] + 2, box[3] + 2), fill="black")
        draw.text((2, 2), text, fill="white", font_size=size)
        yield image
