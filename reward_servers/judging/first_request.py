"""The first request to every judge endpoint, made before a run starts: what a person must change is found here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import ConfigDict

from reward_servers.judging.calls import entailment_call
from reward_servers.judging.endpoints.chat_call import CallFailed, ChatCaller, Setup
from reward_servers.judging.endpoints.dialect import ChatQuestion
from reward_servers.judging.endpoints.endpoints import checked_urls
from reward_servers.judging.unusable import NEEDS_CHANGE, JudgeUnusable
from rlsys.config.run import JudgeConfig

_log = logging.getLogger(__name__)
_EVENT = "A dog runs across a lawn."
_NEEDS_A_PERSON = ("setup", "too_long", "rejected")


class ProbedJudge(JudgeConfig):
    """A judge's config with what its endpoints take, by URL, so that replicas need not find it out again."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    setups: Mapping[str, Setup] = {}
    """Address and parameters of the endpoints that have answered."""


def with_first_request(config: JudgeConfig, api_key: str | None) -> ProbedJudge:
    """Ask every endpoint of `config.urls` one small question, and return the config with what they take.

    Raises JudgeUnusable, with the endpoint's own words, when a person must change something at every endpoint: its
    address, key, quota, model or limits. An endpoint that may come up later is a warning. Takes no longer than
    `call_timeout_s`.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:  # the caller may have an event loop of its own
        setups, failures = thread.submit(asyncio.run, _asked(config, api_key)).result()
    broken = {url: failure for url, failure in failures.items() if failure.kind in _NEEDS_A_PERSON}
    if len(broken) == len(config.urls):
        first, *others = broken.values()
        more = f" The other {len(others)} endpoints cannot be used either." if others else ""
        raise JudgeUnusable(f"{NEEDS_CHANGE}{first.reason}{more}")
    for url, failure in failures.items():
        _log.warning("judge endpoint %s", _warning(failure, is_broken=url in broken))
    return ProbedJudge.model_validate({**dict(config), "setups": setups})


async def _asked(config: JudgeConfig, api_key: str | None) -> tuple[dict[str, Setup], dict[str, CallFailed]]:
    caller = ChatCaller(config, api_key)
    urls = checked_urls(config.urls)
    try:
        found = await asyncio.gather(*(_failure(caller, url, config.call_timeout_s) for url in urls))
    finally:
        await caller.close()
    failures = {url: failure for url, failure in zip(urls, found, strict=True) if failure is not None}
    return caller.setups, failures


async def _failure(caller: ChatCaller, url: str, timeout_s: float) -> CallFailed | None:
    # the call with the most demanding schema
    call = entailment_call([_EVENT], [_EVENT])
    question = ChatQuestion(system=call.system, user=call.user, schema=call.schema, schema_name=call.name)
    try:
        await caller.call(url, question, timeout_s)
    except CallFailed as failure:
        return failure
    return None


def _warning(failure: CallFailed, *, is_broken: bool) -> str:
    if is_broken:
        return f"{failure.reason} The other endpoints are used."
    if failure.kind == "infra":
        return (
            f"{failure.reason}. It does not answer yet: rows wait for it for reward.timeout_s, and then a run pauses "
            "for at most reward.max_pause_s."
        )
    return f"{failure.reason}. Its first answer could not be used; rows whose answer cannot be used stay unscored."
