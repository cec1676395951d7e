"""The reward service over HTTP: authorisation, request validation and the status code of each error."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from reward_servers.schema import (
    MAX_BODY_BYTES,
    MAX_ROWS,
    REPLIES,
    SLOW_HEADER,
    RequestSettings,
    ScoreRequest,
    ScoreRow,
)
from reward_servers.server.auth import TokenCheck
from reward_servers.server.intake import BODY_TIMEOUT_S
from reward_servers.server.service import Busy, RewardService

GetStatus = Callable[[], Awaitable[dict[str, Any]]]
_MAX_FIELD_CHARS = 200


class Refusal(Exception):
    """A request that is answered with an HTTP error: its status and the detail for the caller."""

    def __init__(self, status: int, detail: str | list[dict[str, str]], headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.headers = status, detail, headers


def build_app(
    service: RewardService, token_check: TokenCheck | None, status: GetStatus, max_body_bytes: int = MAX_BODY_BYTES
) -> FastAPI:
    """Return the application: POST /v1/score, GET /v1/status and GET /healthz. token_check None lets everyone ask.

    status: the answer of /v1/status for the whole service. /healthz needs no token and reports only what can be scored.
    """
    app = FastAPI(title="rlsys reward servers", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(Refusal)
    async def refuse(_request: Request, refusal: Refusal) -> Response:
        return JSONResponse({"detail": refusal.detail}, refusal.status, refusal.headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "tasks": service.tasks(), "judge": service.judge_kind, "scorers": service.own_scores}

    @app.get("/v1/status")
    async def get_status(request: Request) -> dict[str, Any]:
        _check_caller(request, token_check)
        return await status()

    @app.post("/v1/score")
    async def post_score(request: Request) -> Response:
        _check_caller(request, token_check)
        _check_content_type(request)
        asked = parse_request(await _body(request, max_body_bytes))
        try:
            replies = await service.score(asked)
        except Busy as busy:
            raise Refusal(429, str(busy), {"Retry-After": str(math.ceil(busy.retry_after_s))}) from busy
        slow = service.slow_scorers()
        headers = {SLOW_HEADER: json.dumps(slow)} if slow else None
        return Response(REPLIES.dump_json(replies), headers=headers, media_type="application/json")

    return app


def parse_request(body: bytes) -> ScoreRequest:
    """Return the request in `body`. Refusal 422 names row, field and problem, and never repeats the row's text."""
    _refuse_crowded(body)
    try:
        request = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise Refusal(422, [_problem(problem["loc"], problem["msg"]) for problem in problems[:20]]) from error
    doubled = [rollout_id for rollout_id, count in Counter(row.rollout_id for row in request.rows).items() if count > 1]
    if doubled:
        raise Refusal(
            422, [_problem(("rollout_id",), f"{name!r} is in the request more than once") for name in doubled[:20]]
        )
    return request


def _refuse_crowded(body: bytes) -> None:
    """Refuse objects with more fields than there are: the validation would keep an error of each unknown one."""
    try:
        value = from_json(body)
    except ValueError:
        return  # the validation says where
    if not isinstance(value, dict):
        return
    rows = value.get("rows")
    places: list[tuple[tuple[int | str, ...], Any, type[BaseModel]]] = [
        ((), value, ScoreRequest),
        (("settings",), value.get("settings"), RequestSettings),
        *(
            (("rows", index), row, ScoreRow)
            for index, row in enumerate(rows[:MAX_ROWS] if isinstance(rows, list) else ())
        ),
    ]
    for place, found, model in places:
        if isinstance(found, dict) and len(found) > len(model.model_fields):
            said = f"it has {len(found)} fields, and there are {len(model.model_fields)}"
            raise Refusal(422, [_problem(place, said)])


def _problem(location: tuple[int | str, ...], message: str) -> dict[str, str]:
    is_in_row = location[:1] == ("rows",) and len(location) > 1
    row, names = (str(location[1]), location[2:]) if is_in_row else ("", location)
    return {"row": row, "field": ".".join(map(str, names))[:_MAX_FIELD_CHARS], "problem": message}


def _check_caller(request: Request, token_check: TokenCheck | None) -> None:
    if token_check is not None and not token_check.accepts(request.headers.get("authorization")):
        raise Refusal(
            401,
            "send the header 'Authorization: Bearer <token>' with the token of this server.",
            {"WWW-Authenticate": "Bearer"},
        )


def _check_content_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"content type {kind!r}: send application/json.")


async def _body(request: Request, limit: int) -> bytes:
    # counted while it arrives: a chunked request has no length to look at
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise Refusal(413, f"the body has more than {limit} bytes; send fewer rows per request.")
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s.", {"Connection": "close"}) from None
    return b"".join(parts)
