"""Calls to the judge's OpenAI-compatible endpoints, within shared limits.

- `llm.JudgeLlm`: ask the model, with retries, hedging and a deadline; raises `JudgeFailure`
- `chat_call.ChatCaller`: one call to one endpoint
- `endpoints.EndpointBoard`: the owner of all limits in one event loop
- `board_actor.ClusterBoard`: the same owner as one actor of a Ray cluster
- `leases.Board`, `leases.Lease`, `leases.CallReport`: the messages between callers and the owner
- `limits.Window`, `limits.Breaker`, `endpoint_state.Endpoint`: the state of one endpoint
- `shared_calls.SharedCalls`: equal calls at the same time become one
"""
