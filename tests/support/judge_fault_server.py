"""A small OpenAI-compatible server that answers a judge's questions sensibly, or with scripted faults.

    with FaultServer() as server:                 # http://127.0.0.1:PORT/v1 in server.url
        server.script(too_many(retry_after="1"), HANG)   # the next two requests; those after them are answered
        …
        assert server.max_concurrency <= 4 and server.most_in(60.0) <= 100

It runs in a thread of its own, so it serves callers in this process and in others. Requests are counted as they
arrive, and a request is in flight until its answer is out or its caller has hung up.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

JsonObject = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The answer to one request; the default is a sensible one.

    message: of an error.  body: the whole HTTP body, instead of a chat completion.  content: the model's text,
    instead of a sensible answer.  drop: elements missing at the end of each list of a sensible answer.
    delay_s: before the answer; None takes the server's.  byte_s: seconds between single bytes of the body.
    cut: the connection ends in the middle of the body.  hang: no answer at all, until the caller hangs up.
    message_fields: of the model's message, instead of `content` alone.  num_times: the body is sent so often, without
    a Content-Length.  model: the name that the answer gives its model; None is the one that was asked for.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    message: str = "made to fail"
    body: bytes | None = None
    content: str | None = None
    refusal: str | None = None
    finish_reason: str = "stop"
    drop: int = 0
    delay_s: float | None = None
    byte_s: float = 0.0
    cut: bool = False
    hang: bool = False
    message_fields: tuple[tuple[str, Any], ...] = ()
    num_times: int = 1
    model: str | None = None


FINE = Fault()
HANG = Fault(hang=True)
HALF = Fault(cut=True)
DRIBBLE = Fault(byte_s=0.02)
NOT_JSON = Fault(content='{"verdicts": [')
NOT_A_COMPLETION = Fault(body=b"<html>proxy error</html>")
CUT_OFF = Fault(content='{"verdicts": [', finish_reason="length")
WRONG_COUNT = Fault(drop=1)
REFUSAL = Fault(refusal="I cannot help with that.")
FILTERED = Fault(content="", finish_reason="content_filter")


def error(status: int, message: str = "made to fail") -> Fault:
    return Fault(status=status, message=message)


def too_many(retry_after: str | None = None) -> Fault:
    """Return a 429 answer. retry_after: the header, seconds or a date."""
    headers = () if retry_after is None else (("Retry-After", retry_after),)
    return Fault(status=429, headers=headers, message="slow down")


def slow(delay_s: float) -> Fault:
    return Fault(delay_s=delay_s)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A request. number: from 0.  at: time.monotonic at its arrival.  tokens: billed for it."""

    number: int
    at: float
    path: str
    headers: dict[str, str]
    body: JsonObject
    tokens: int

    @property
    def user(self) -> str:
        """Text of the user's message."""
        return self.body["messages"][-1]["content"]

    @property
    def schema(self) -> JsonObject:
        """JSON schema of the requested answer, from the request's parameters or from its prompt."""
        form = self.body.get("response_format", {})
        if "json_schema" in form:
            return form["json_schema"]["schema"]
        return json.loads(self.user.rpartition("Its schema: ")[2])


def sensible_answer(seen: Seen) -> JsonObject:
    """Return an answer in the form of the request's schema.

    A list of texts gets the sentences of the quoted text in <description>. A verdict is the first value of its enum
    when the description holds the statement word for word, else the second; without statements it is the first.
    """
    statements = _quoted(seen.user, "statements")
    description = _quoted(seen.user, "description")
    return _fill(seen.schema, _Material(statements, description, 0))


@dataclass(frozen=True)
class _Material:
    statements: list[str]
    description: list[str]
    index: int


def _fill(schema: JsonObject, material: _Material) -> Any:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0 if _is_held(material) else 1]
    kind = schema.get("type")
    if kind == "object":
        return {name: _fill(child, material) for name, child in schema["properties"].items()}
    if kind == "array":
        return _fill_list(schema, material)
    plain = {"integer": material.index + 1, "number": 0.5, "boolean": _is_held(material), "string": "because"}
    return plain.get(kind or "")


def _fill_list(schema: JsonObject, material: _Material) -> list[Any]:
    items = schema.get("prefixItems", [])
    if items or schema["items"].get("type") == "object":
        count = max(len(items), schema.get("minItems", 0), 0 if items else len(material.statements))
        kinds = [*items, *([schema.get("items")] * (count - len(items)))]
        return [_fill(child, replace(material, index=index)) for index, child in enumerate(kinds)]
    sentences = [part.strip() for text in material.description for part in re.split(r"(?<=[.;!?])\s+", text)]
    return [part for part in sentences if part][: schema.get("maxItems")] or ["nothing"]


def _is_held(material: _Material) -> bool:
    if not material.statements:
        return True
    return material.statements[material.index].casefold() in " ".join(material.description).casefold()


def _quoted(text: str, tag: str) -> list[str]:
    """Return the JSON strings in a tag, one per line."""
    inside = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    lines = inside.group(1).splitlines() if inside else []
    return [json.loads(line[line.index('"') :]) for line in lines if '"' in line]


class FaultServer:
    """The server, a context manager. Its counters are public and may be read from any thread.

    answer: of well-answered requests.  delay_s: before each answer.  api_key, model: others are refused as vLLM does.
    has_usage: whether answers say what they cost.  route: the only path that is answered; others get `elsewhere`.
    rule: asked for each request that the script leaves open.
    """

    def __init__(
        self,
        answer: Callable[[Seen], JsonObject] = sensible_answer,
        delay_s: float = 0.0,
        api_key: str | None = None,
        model: str | None = None,
        has_usage: bool = True,
    ) -> None:
        self.answer, self.delay_s, self.api_key, self.model, self.has_usage = answer, delay_s, api_key, model, has_usage
        self.rule: Callable[[Seen], Fault | None] = lambda _: None
        self.route: str | None = None
        self.elsewhere = error(404, "no such path")
        self.num_bytes_sent = 0
        self.seen: list[Seen] = []
        self.in_flight = self.max_concurrency = self.num_hung_up = self.port = 0
        self._script: deque[Fault] = deque()
        self._connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge-fault-server", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def script(self, *faults: Fault) -> None:
        """Set the answers to the next requests, in order."""
        self._script.extend(faults)

    def start(self) -> None:
        """Start to listen, on the same port as before."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def stop(self) -> None:
        """Stop listening and end all connections."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()

    def most_in(self, window_s: float) -> int:
        """Return the largest number of requests that arrived within any `window_s` seconds."""
        return self._most(window_s, [1] * len(self.seen))

    def most_tokens_in(self, window_s: float) -> int:
        """Return the largest number of tokens of requests that arrived within any `window_s` seconds."""
        return self._most(window_s, [seen.tokens for seen in self.seen])

    def _most(self, window_s: float, weights: list[int]) -> int:
        most = held = first = 0
        for seen, weight in zip(self.seen, weights, strict=True):
            held += weight
            while self.seen[first].at <= seen.at - window_s:
                held -= weights[first]
                first += 1
            most = max(most, held)
        return most

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._connections):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller went away
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request of a connection; return False if the connection has ended."""
        seen = self._arrived(*await _read_request(reader))
        self.in_flight += 1
        self.max_concurrency = max(self.max_concurrency, self.in_flight)
        try:
            return await self._respond(seen, self._fault(seen), reader, writer)
        finally:
            self.in_flight -= 1

    async def _stays(self, reader: asyncio.StreamReader, seconds: float | None) -> bool:
        """Return whether the caller is still connected after `seconds`; None waits until it is not."""
        gone = asyncio.ensure_future(
            reader.read(1)
        )  # before its answer a caller sends nothing: this can only be the end
        done, _ = await asyncio.wait({gone}, timeout=seconds)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        self.num_hung_up += len(done)
        return not done

    def _arrived(self, path: str, headers: dict[str, str], body: bytes) -> Seen:
        tokens = len(body) // 4
        read = json.loads(body) if body else {}
        seen = Seen(number=len(self.seen), at=time.monotonic(), path=path, headers=headers, body=read, tokens=tokens)
        self.seen.append(seen)
        return seen

    def _fault(self, seen: Seen) -> Fault:
        path = seen.path.partition("?")[0]
        if not path.endswith("/chat/completions") or self.route not in (None, path):
            return self.elsewhere
        if self.api_key is not None and seen.headers.get("authorization") != f"Bearer {self.api_key}":
            return error(401, f"Incorrect API key provided: {seen.headers.get('authorization')}")
        if self.model is not None and seen.body["model"] != self.model:
            return error(404, f"The model `{seen.body['model']}` does not exist.")
        return self._script.popleft() if self._script else self.rule(seen) or FINE

    async def _respond(
        self, seen: Seen, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send the answer and return whether the connection can be used again."""
        delay_s = self.delay_s if fault.delay_s is None else fault.delay_s
        if (delay_s or fault.hang) and not await self._stays(reader, None if fault.hang else delay_s):
            return False
        body = fault.body if fault.body is not None else json.dumps(self._reply(seen, fault)).encode()
        length = (("Content-Length", str(len(body))),) if fault.num_times == 1 else (("Connection", "close"),)
        kind = (
            () if any(name == "Content-Type" for name, _ in fault.headers) else (("Content-Type", "application/json"),)
        )
        headers = (*kind, *length, *fault.headers)
        head = f"HTTP/1.1 {fault.status} {'OK' if fault.status == 200 else 'Failure'}\r\n"
        writer.write((head + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n").encode())
        if fault.cut:
            writer.write(body[: len(body) // 2])
            await writer.drain()
            writer.close()  # not abort: what was written must still arrive
            return False
        if fault.byte_s:
            for at in range(len(body)):
                writer.write(body[at : at + 1])
                await writer.drain()
                await asyncio.sleep(fault.byte_s)
        else:
            for _ in range(fault.num_times):
                writer.write(body)
                await writer.drain()
                self.num_bytes_sent += len(body)
        if fault.num_times > 1:
            writer.close()
        return fault.num_times == 1

    def _reply(self, seen: Seen, fault: Fault) -> JsonObject:
        if fault.status != 200:
            return {"error": {"message": fault.message, "type": "made", "code": None, "param": None}}
        content = fault.content
        if content is None and fault.refusal is None:
            content = json.dumps(_shortened(self.answer(seen), fault.drop))
        message = {"role": "assistant", "content": content, "refusal": fault.refusal, **dict(fault.message_fields)}
        usage = {"prompt_tokens": seen.tokens, "completion_tokens": 0, "total_tokens": seen.tokens}
        return {
            "id": f"chatcmpl-{seen.number}",
            "object": "chat.completion",
            "created": 0,
            "model": fault.model or seen.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": fault.finish_reason}],
            **({"usage": usage} if self.has_usage else {}),
        }


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return first.split(" ")[1], headers, body


def _shortened(value: Any, drop: int) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(child, drop) for key, child in value.items()}
    return value[: len(value) - drop] if isinstance(value, list) and drop else value
