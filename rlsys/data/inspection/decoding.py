"""Which clips of an annotation file cannot be decoded, found before a run meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rlsys.data.video.errors import ClipError
from rlsys.data.video.processes import each_apart
from rlsys.types import MediaSpec, PromptItem


def undecodable(
    items: Sequence[PromptItem],
    *,
    workers: int,
    timeout_s: float,
    track: Callable[[Sequence[Any]], Iterable[Any]] = lambda one: one,
) -> Iterator[ClipError]:
    """Decode every clip of the items as a run does, in processes of their own, and yield why those that fail do.

    workers: processes.  timeout_s: for one clip.  track: passes a list through and shows how much of it is done.
    """
    specs = list(dict.fromkeys(spec for item in items for spec in item.media))
    found = each_apart(_problem, specs, workers=workers, timeout_s=timeout_s)
    for spec, problem in zip(track(specs), found, strict=True):
        if isinstance(problem, ClipError):
            yield problem
        elif isinstance(problem, TimeoutError):
            yield ClipError(spec.uri, "timeout", f"not decoded after {timeout_s:g} s")
        elif problem is not None:
            yield ClipError(spec.uri, "crashed", "decoding ended its process")


def _problem(spec: MediaSpec) -> ClipError | None:
    from rlsys.data.video.decode import decode

    try:
        decode(spec)
    except ClipError as error:
        return error
    return None
