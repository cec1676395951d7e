"""The reward service as a web application: HTTP in, scores out. No Ray here; `app.py` puts it on Serve."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from reward_servers.auth import TokenCheck
from reward_servers.schema import MAX_BODY_BYTES, REPLIES, REQUESTS, ScoreReply, ScoreRequest
from reward_servers.scorers import score
from rlsys.tasks import TASKS


class Refusal(Exception):
    """A request that is answered with an HTTP error: status, and what to tell the caller."""

    def __init__(self, status: int, detail: str | list[dict[str, str]]) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


def build(token_check: TokenCheck | None, max_body_bytes: int = MAX_BODY_BYTES) -> FastAPI:
    """The application: POST /v1/score and GET /healthz. token_check None lets everyone score."""
    app = FastAPI(title="rlsys reward servers", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, object]:
        return {"status": "ok", "tasks": list(TASKS)}

    @app.post("/v1/score")
    async def post_score(request: Request) -> Response:
        try:
            _check_caller(request, token_check)
            rows = parse_rows(await _body(request, max_body_bytes))
        except Refusal as refusal:
            headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
            return JSONResponse({"detail": refusal.detail}, refusal.status, headers)
        return Response(REPLIES.dump_json(score_rows(rows)), media_type="application/json")

    return app


def score_rows(rows: Sequence[ScoreRequest]) -> list[ScoreReply]:
    """One reply per row, in order. Each row has its own task; one that cannot be scored leaves the others alone."""
    return [_score_row(row) for row in rows]


def parse_rows(body: bytes) -> list[ScoreRequest]:
    """The rows of a request. Refusal 422 names row, field and problem, and never repeats the row's text."""
    try:
        rows = REQUESTS.validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise Refusal(422, [_problem(problem["loc"], problem["msg"]) for problem in problems[:20]]) from error
    doubled = [rollout_id for rollout_id, count in Counter(row.rollout_id for row in rows).items() if count > 1]
    if doubled:
        raise Refusal(
            422, [_problem(("rollout_id",), f"{name!r} is in the request more than once") for name in doubled[:20]]
        )
    return rows


def _score_row(row: ScoreRequest) -> ScoreReply:
    started = time.perf_counter()
    result = score(row.task, row.text, row.truth, row.think)
    return ScoreReply(
        rollout_id=row.rollout_id,
        status=result.status,
        scores=dict(result.scores),
        reason=result.reason,
        evidence=result.evidence,
        seconds=time.perf_counter() - started,
    )


def _problem(location: tuple[int | str, ...], message: str) -> dict[str, str]:
    row, field = (str(location[0]), location[1:]) if location and isinstance(location[0], int) else ("", location)
    return {"row": row, "field": ".".join(map(str, field)), "problem": message}


def _check_caller(request: Request, token_check: TokenCheck | None) -> None:
    if token_check is not None and not token_check.accepts(request.headers.get("authorization")):
        raise Refusal(401, "send the header 'Authorization: Bearer <token>' with the token of this server.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"content type {kind!r}: send application/json.")


async def _body(request: Request, limit: int) -> bytes:
    # counted while it arrives: a chunked request has no length to look at
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Refusal(413, f"the body has more than {limit} bytes; send fewer rows per request.")
        parts.append(part)
    return b"".join(parts)
