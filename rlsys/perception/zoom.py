"""A turn that the model asks for: it names a part of the clip in its response, and the next round shows it enlarged.

The example of a `NextTurn` beside `look_again`. The part is shown behind the row's own media, which stay as they were;
so the part of the prompt up to there is that of the first round, and the engine has it in its cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlsys.config.perception import PerceptionConfig
from rlsys.data.video.frames import TEMPORAL_PATCH
from rlsys.perception.clues import Clue, box_unit
from rlsys.perception.crop import crop_around
from rlsys.perception.media import WholeClip, frame_budget, image_specs, segment_spec, with_budgets
from rlsys.perception.selection import Segment
from rlsys.perception.turns import Round, Show, Stop, box_text, seconds
from rlsys.tasks.answers import Boxes, TimeSpans, read_box, read_period
from rlsys.types import ImageSpec, PromptItem

_REQUEST = re.compile(r"<zoom>([^<]{1,200})</zoom>")


def tool_note(item: PromptItem) -> str:
    """Return what a prompt says of the request; "" for a row that shows other than one medium."""
    if len(item.media) != 1:
        return ""
    example = box_text(item, (0.1, 0.25, 0.45, 0.8))
    if isinstance(item.media[0], ImageSpec):
        return f"To see a part of the image enlarged, write its box, in this form: <zoom>{example}</zoom>."
    return (
        "To see a part of the video more closely, write its start and end in seconds, or a box, in this form: "
        f"<zoom>12.54 to 17.83</zoom> or <zoom>{example}</zoom>."
    )


def zoom(
    item: PromptItem, whole: WholeClip | None, rounds: Sequence[Round], *, perception: PerceptionConfig
) -> Show | Stop:
    """Show the part that the last response requests by `<zoom>…</zoom>`, behind the row's own media.

    A request holds a period in seconds or a box. Stops where the response has none, or one that cannot be met.
    """
    if len(rounds) >= perception.rounds:
        return Stop(reason="rounds used up")
    if len(item.media) != 1:
        return Stop(reason=f"the row shows {len(item.media)} media, and a request does not say of which")
    requests = _REQUEST.findall(rounds[-1].text)
    if not requests:
        return Stop(reason="no part was requested")
    clue = _requested(item, requests[-1])
    shown = None if clue is None else _enlarged(item, whole, clue, perception)
    if shown is None:
        return Stop(reason=f"the request {requests[-1]!r} names no part of what is shown")
    note = tool_note(item) if len(rounds) + 1 < perception.rounds else ""
    return Show(media=shown.media, media_texts=shown.media_texts, note=note, clue=clue)


def _requested(item: PromptItem, request: str) -> Clue | None:
    box, period = read_box(request), read_period(request)
    if isinstance(box, Boxes):
        width, height = box_unit(item)
        x0, y0, x1, y1 = box.boxes[0]
        return Clue(boxes=((x0 / width, y0 / height, x1 / width, y1 / height),))
    if isinstance(period, TimeSpans) and not isinstance(item.media[0], ImageSpec):
        return Clue(periods=period.spans[-1:])
    return None


def _enlarged(item: PromptItem, whole: WholeClip | None, clue: Clue, perception: PerceptionConfig) -> Show | None:
    """Return the row's media and the part; None if there is no such part."""
    (spec,) = item.media
    crop = crop_around(clue.boxes, perception.margin)
    if isinstance(spec, ImageSpec):
        if crop is None:
            return None
        _, part = image_specs(spec, crop, perception)
        return Show(media=(spec, part), media_texts=("", f"Enlarged, {box_text(item, crop)}:"))
    if whole is None:
        raise ValueError(f"{item.prompt_id}: a later look at a video needs what the first told of it; give `whole`.")
    start_s, end_s = clue.periods[0] if clue.periods else (0.0, whole.length_s)
    start_s, end_s = max(start_s, 0.0), min(end_s, whole.length_s)
    available = int((end_s - start_s) * whole.source_fps + 1e-6)
    num_frames = min(frame_budget(spec, whole, perception), available - available % TEMPORAL_PATCH)
    if num_frames < TEMPORAL_PATCH or (crop is None and not clue.periods):
        return None
    budget = with_budgets(spec, perception)
    segment = Segment(start_s=start_s, end_s=end_s, num_frames=num_frames, is_key=True)
    part_of_video = segment_spec(budget, whole, segment, budget.total_pixels // num_frames, crop)
    where = f"{seconds(start_s)} to {seconds(end_s)} seconds" + ("" if crop is None else f", {box_text(item, crop)}")
    return Show(media=(spec, part_of_video), media_texts=("", f"Enlarged, {where}:"))
