"""The answers of an evaluation, kept row by row in a file, so that a killed evaluation continues where it was."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType

from rlsys.errors import UserError
from rlsys.types import ClipInfo, Json, RolloutGroup

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """The clips that an answer is about, and the seconds that decoding them took."""

    clips: tuple[ClipInfo, ...]
    decode_s: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model answered to one row.

    texts: one per sample; () if there is none, for the reason `problem`.  finish_reasons: "stop" or "length" of each.
    prompt_tokens: number of tokens of the prompt with its media; 0 if the endpoint did not say.
    num_frames: of the clips that were shown.  frame_pixels: height x width of a frame, the mean over them.
    seconds: of generation.
    confidence: of the first text, see `Rollout.confidence`; 1 if it is not known.
    look: of a row that is answered round by round, what the file keeps of the round: "clue", "reason", "stopped",
    "visual_tokens", "decode_s" and, in the first round, "whole"; None elsewhere.
    shown: the clips, while the answer is new; files have none.
    """

    row_id: str
    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...] = ()
    problem: str = ""
    prompt_tokens: int = 0
    num_frames: int = 0
    frame_pixels: int = 0
    seconds: float = 0.0
    confidence: float = 1.0
    look: Json = None
    shown: Shown | None = field(default=None, compare=False)


def answer_of(group: RolloutGroup) -> Answer:
    """Return the answer that a group of rollouts is."""
    first = group.rollouts[0]
    num_frames, frame_pixels = shown_frames([clip.info for clip in group.clips])
    return Answer(
        row_id=group.item.prompt_id,
        texts=tuple(rollout.text for rollout in group.rollouts),
        finish_reasons=tuple(rollout.finish_reason for rollout in group.rollouts),
        prompt_tokens=int(first.prompt_ids.size),
        num_frames=num_frames,
        frame_pixels=frame_pixels,
        seconds=first.generate_s,
        confidence=first.confidence,
        shown=Shown(
            clips=tuple(clip.info for clip in group.clips), decode_s=sum(clip.decode_s for clip in group.clips)
        ),
    )


def shown_frames(clips: Sequence[ClipInfo]) -> tuple[int, int]:
    """Return the number of frames of some clips, and the mean height x width of a frame; (0, 0) without clips."""
    num_frames = sum(clip.times_s.size for clip in clips)
    return num_frames, sum(clip.num_bytes for clip in clips) // (3 * num_frames) if num_frames else 0


class AnswersDiffer(UserError):
    """A file has the answers of another model, of other rows or of another setting."""


class AnswersFile:
    """A JSONL file of answers, one line each, open for appending inside a `with` block.

    identity: what the answers depend on, by name; it is the file's first line. Answers that the file has already are
    in `answers`. A last line that was cut off by a kill is discarded.
    Raises AnswersDiffer if the file's identity differs, UserError if another line cannot be read.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self._path, self._identity = path, dict(identity)
        self.answers: dict[str, Answer] = {}

    def __enter__(self) -> AnswersFile:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read() if self._path.exists() else 0
        self._file = self._path.open("a", encoding="utf-8")
        self._file.truncate(whole)
        if whole == 0:
            self._write({"identity": self._identity})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # tries once more what could not be written, which was raised then
            self._file.close()

    def add(self, answer: Answer, *, is_kept: bool = True) -> None:
        """Add one answer, to the file too if it is kept. Raises ValueError for a row that has one already."""
        if answer.row_id in self.answers:
            raise ValueError(f"{answer.row_id} was answered already.")
        answer = replace(answer, shown=None)
        if is_kept:
            tree = asdict(answer)
            del tree["shown"]
            if answer.look is None:
                del tree["look"]
            self._write(tree)
        self.answers[answer.row_id] = answer

    def _write(self, tree: Mapping[str, object]) -> None:
        try:
            self._file.write(json.dumps(tree) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _read(self) -> int:
        """Read the whole lines of the file and return their number of bytes."""
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            log.warning("%s: discarded an unfinished last line", self._path)
        lines = data[:end].splitlines()
        if not lines:
            return 0
        try:
            self._check_identity(dict(json.loads(lines[0])["identity"]))
            for line in lines[1:]:
                answer = Answer(**json.loads(line))
                texts, reasons = tuple(answer.texts), tuple(answer.finish_reasons)  # JSON has lists
                self.answers[answer.row_id] = replace(answer, texts=texts, finish_reasons=reasons)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._path}: not a file of answers ({type(error).__name__}: {error}); move it away, or evaluate "
                "into another folder (--out)."
            ) from error
        return end

    def _check_identity(self, found: Mapping[str, str]) -> None:
        differing = [
            f"{name}: was {found.get(name)}, is {self._identity.get(name)}"
            for name in sorted(found.keys() | self._identity.keys())
            if found.get(name) != self._identity.get(name)
        ]
        if differing:
            raise AnswersDiffer(
                f"{self._path} has answers of another evaluation:\n  " + "\n  ".join(differing) + "\nEvaluate into "
                "another folder (--out), or move this one away."
            )
