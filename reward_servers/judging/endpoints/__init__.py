"""Calls to the judge's OpenAI-compatible endpoints, within shared limits.

- `llm` (`Completion`, `JudgeFailure`, `JudgeLlm`): a model call with retries, hedging and a deadline
- `chat_call` (`CallFailed`, `ChatCaller`, `Setup`): one call, adapted to what an endpoint takes
- `dialect` (`ChatQuestion`): the parameters that an endpoint takes
- `endpoints` (`EndpointBoard`, `checked_urls`): the owner of all limits in one event loop
- `board_actor` (`ClusterBoard`): the same owner as one actor of a Ray cluster
- `leases` (`Board`): the messages between callers and the owner
- `shared_calls` (`SharedCalls`): equal calls at the same time become one
"""
