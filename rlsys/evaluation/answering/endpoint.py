"""Answers from an OpenAI-compatible endpoint, so that a served model is measured with the same rows and clips.

The only file that imports the client `openai` for a policy; the judge's is in `reward_servers`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlsys.config.evaluation import EndpointConfig
from rlsys.errors import UserError
from rlsys.evaluation.answering.answers import Answer, shown_frames
from rlsys.evaluation.answering.responders import RowRefused
from rlsys.loop.preparer import ClipFetcher, Clips
from rlsys.models.stamps import STAMP_RATE, frame_numbers
from rlsys.types import ClipInfo, ClipRef, PromptItem, Sampling, VideoSpec
from rlsys.urls import masked_url

if TYPE_CHECKING:
    from openai import AsyncOpenAI

REFUSALS_IN_A_ROW = 8
"""Refused requests without any answer after which the evaluation ends: then the request is at fault, not a row."""
MAX_RETRIES = 6
CONNECT_TIMEOUT_S = 10.0
AGAIN = "The answers so far are kept; run the same command again to continue."
_KEY = "Put its key into the environment variable that evaluation.endpoint.api_key_env names."
_REMEDIES = {
    401: _KEY,
    403: _KEY,
    404: "Check evaluation.endpoint.url, which usually ends in /v1, and evaluation.endpoint.model.",
}
"""Status of a reply -> what to do about it."""


class EndpointResponder(ClipFetcher):
    """Answers of a served model to the same rows, as a chat with one turn of media and the question.

    question_of: the text of an item's prompt.  key: of the endpoint, or None.  tells_seconds: whether the model's
    prompts have time stamps, which the server then writes from the frames' true times.
    """

    def __init__(
        self,
        clips: Clips,
        question_of: Callable[[PromptItem], str],
        endpoint: EndpointConfig,
        key: str | None,
        *,
        tells_seconds: bool = False,
    ) -> None:
        super().__init__(clips)
        self._question_of, self._endpoint = question_of, endpoint
        self._key, self._model, self._tells_seconds = key, endpoint.model, tells_seconds
        self._client: AsyncOpenAI | None = None
        self._length_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
        self._num_refused = self._num_answered = 0
        self._room = asyncio.Semaphore(endpoint.concurrency)

    def check(self) -> None:
        """See `Responder`: a request has a time limit of its own."""

    def answer(self, item: PromptItem, sampling: Sampling) -> Future[Answer]:
        """See `Responder`. Raises UserError if the endpoint cannot be used at all."""
        return asyncio.run_coroutine_threadsafe(self._answer(item, sampling), self._events)

    async def _answer(self, item: PromptItem, sampling: Sampling) -> Answer:
        clips = await self._fetch(item)
        content, extra = await self._content(item, clips)
        body = {"messages": [{"role": "user", "content": content}], "extra_body": extra}
        start = time.monotonic()
        replies = await asyncio.gather(*(self._ask(body, sampling, index) for index in range(sampling.num_samples)))
        num_frames, frame_pixels = shown_frames([clip.info for clip in clips])
        return Answer(
            row_id=item.prompt_id,
            texts=tuple(reply.choices[0].message.content or "" for reply in replies),
            finish_reasons=tuple(reply.choices[0].finish_reason for reply in replies),
            prompt_tokens=replies[0].usage.prompt_tokens if replies[0].usage else 0,
            num_frames=num_frames,
            frame_pixels=frame_pixels,
            seconds=time.monotonic() - start,
        )

    async def _ask(self, body: dict[str, Any], sampling: Sampling, index: int) -> Any:  # noqa: ANN401
        import openai

        async with self._room:
            client, length_key = await self._connected(), self._length_key
            try:
                reply = await client.chat.completions.create(
                    **body,
                    model=self._model,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=(sampling.seed + index) % 2**31,  # some servers keep seeds in 32 bits
                    **{length_key: sampling.max_tokens},
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                # the key of this request: another one in flight may have changed it already
                if "max_completion_tokens" in error.message and length_key == "max_tokens":
                    self._length_key = "max_completion_tokens"
                else:
                    raise self._refused(error.message) from error
            except openai.OpenAIError as error:
                raise self._failed(error) from error
            else:
                if not reply.choices:
                    raise self._failed(UserError("a reply without choices"))
                self._num_answered += 1
                return reply
        return await self._ask(body, sampling, index)

    async def _connected(self) -> Any:  # noqa: ANN401
        import openai

        if self._client is None:
            self._client = openai.AsyncOpenAI(
                base_url=self._endpoint.url,
                api_key=self._key or "none",
                max_retries=MAX_RETRIES,
                timeout=openai.Timeout(self._endpoint.timeout_s, connect=CONNECT_TIMEOUT_S),
            )
        if self._model is None:
            try:
                served = [model.id async for model in self._client.models.list()]
            except openai.OpenAIError as error:
                raise self._failed(error) from error
            if len(served) != 1:
                raise UserError(
                    f"{self._url} serves {', '.join(served) or 'no model'}; choose one with evaluation.endpoint.model."
                )
            (self._model,) = served
        return self._client

    @property
    def model(self) -> str | None:
        """The name of the model that answers; None before the first request if the config does not name it."""
        return self._model

    @property
    def _url(self) -> str:
        return masked_url(self._endpoint.url or "")

    def _refused(self, message: str) -> UserError:
        self._num_refused += 1
        text = f"{self._url} refuses the request: {' '.join(message.split())[:500]}"
        if self._num_refused >= REFUSALS_IN_A_ROW and not self._num_answered:
            return UserError(
                f"{text}\nThe first {self._num_refused} requests were all refused, so it is not the rows: check "
                "evaluation.endpoint (model, frames) and rollout.max_tokens."
            )
        return RowRefused(text)

    def _failed(self, error: Exception) -> UserError:
        return UserError(
            f"{self._url} (evaluation.endpoint): {type(error).__name__}: {' '.join(str(error).split())[:500]}. "
            + _REMEDIES.get(getattr(error, "status_code", 0), AGAIN)
        )

    async def _content(self, item: PromptItem, clips: Sequence[ClipRef]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the parts of the user's turn, and fields of the request beyond OpenAI's."""
        parts: list[dict[str, Any]] = []
        extra: dict[str, Any] = {"skip_special_tokens": False} if self._endpoint.frames == "video" else {}
        for spec, clip in zip(item.media, clips, strict=True):
            if self._endpoint.frames == "file" and isinstance(spec, VideoSpec):
                if spec.files:
                    raise RowRefused(f"{spec.uri} and others: a list of images is no file; use frames=images")
                parts.append({"type": "video_url", "video_url": {"url": Path(spec.uri).absolute().as_uri()}})
                continue
            frames = await clip.frames if isawaitable(clip.frames) else clip.frames
            images = await asyncio.to_thread(_encoded, frames, self._endpoint.encoding)
            if clip.info.kind == "image":
                parts.append(_image(images[0], self._endpoint.encoding))
            elif self._endpoint.frames == "video":
                parts.append({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(images)}"}})
                extra["media_io_kwargs"] = {"video": _sequence_settings(clip.info, self._tells_seconds)}
            else:
                for time_s, image in zip(clip.info.times_s, images, strict=True):
                    parts.append({"type": "text", "text": f"{time_s:.2f} s:"})
                    parts.append(_image(image, self._endpoint.encoding))
        return [*parts, {"type": "text", "text": self._question_of(item)}], extra


def _sequence_settings(clip: ClipInfo, tells_seconds: bool) -> dict[str, Any]:
    """Return the settings by which vLLM (0.32) takes a sequence of images as a video that is sampled already.

    Without them it assumes one frame per second and drops frames beyond its own number. They are those of the actors:
    models whose prompts tell times take them from the frames' numbers, others take the rate alone.
    """
    num_frames = clip.times_s.size
    fps = STAMP_RATE if tells_seconds else num_frames // clip.grid_thw[0] / clip.second_per_grid_s
    numbers = frame_numbers(clip) if tells_seconds else list(range(num_frames))
    total = numbers[-1] + 1
    return {
        "num_frames": -1,
        "fps": fps,
        "total_num_frames": total,
        "duration": total / fps,
        "frames_indices": numbers,
        "do_sample_frames": False,
    }


def _image(data: str, encoding: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/{encoding};base64,{data}"}}


def _encoded(frames: np.ndarray, encoding: Literal["png", "jpeg"]) -> list[str]:
    """Return u8 [T, H, W, 3] as base64 of one image file per frame; png is exact."""
    from PIL import Image

    found = []
    for frame in frames:
        buffer = io.BytesIO()
        settings = {"compress_level": 1} if encoding == "png" else {"quality": 95}
        Image.fromarray(frame).save(buffer, format=encoding.upper(), **settings)
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return found
