"""Models that answer a judge by rules, and can be scripted to fail."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable

from reward_servers.judging.endpoints.llm import Completion, JudgeFailure
from rlsys.types import Json

URL = "http://judge.example/v1"


class Oracle:
    """A model for which events are sentences, and a statement is entailed if the description has the same sentence.

    answers: by call, scripted answers in order; an exception is raised.  wait: an event that every call waits for.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.users: list[str] = []
        self.answers: dict[str, list[Json | Exception]] = {}
        self.undecided: set[str] = set()
        self.wait: Callable[[str], asyncio.Future[None] | None] = lambda _: None
        self.num_running = self.most_running = 0
        self.is_closed = False

    async def complete(
        self, system: str, user: str, schema: dict[str, Json], schema_name: str, deadline_s: float
    ) -> Completion:
        self.calls[schema_name] += 1
        self.users.append(user)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            future = self.wait(schema_name)
            await (future or asyncio.sleep(0))
        finally:
            self.num_running -= 1
        planned = self.answers.get(schema_name)
        answer = planned.pop(0) if planned else getattr(self, f"_{schema_name}")(user)
        if isinstance(answer, Exception):
            raise answer
        return Completion(value=answer, tokens=10, url=URL, seconds=0.0)

    async def close(self) -> None:
        self.is_closed = True

    def _split(self, user: str) -> Json:
        (text,) = quoted_texts(between(user, "description"))
        return {"events": [f"{part.strip()}." for part in text.split(".") if part.strip()]}

    def _entailment(self, user: str) -> Json:
        told = set(quoted_texts(between(user, "description")))
        verdicts = []
        for index, event in enumerate(quoted_texts(between(user, "statements")), start=1):
            verdict = "entailed" if event in told else "not_entailed"
            verdict = "cannot_tell" if event in self.undecided else verdict
            verdicts.append({"index": index, "reason": f"about {event}", "verdict": verdict})
        return {"verdicts": verdicts}

    def _consistency(self, user: str) -> Json:
        (reasoning,) = quoted_texts(between(user, "reasoning"))
        (answer,) = quoted_texts(between(user, "answer"))
        return {"reason": "", "verdict": "consistent" if answer in reasoning else "inconsistent"}


def between(text: str, tag: str) -> str:
    """Return the content of the only element `tag` of the prompt."""
    (found,) = re.findall(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    return found


def quoted_texts(block: str) -> list[str]:
    """Return the JSON strings of a block, one per line."""
    return [json.loads(re.sub(r"^\d+\. ", "", line)) for line in block.splitlines() if line]


def refused() -> JudgeFailure:
    return JudgeFailure("abstain", "the model refused")
