"""The client of the reward servers: one POST per group, with retries and a pause when too much is lost.

- `client.RewardClient`: a `RolloutGroup` in, a `ScoredGroup` out
- `client.is_lost`: whether a missing score counts for the pause
- `failures.FailureWindow`: the share of lost scores among recent rollouts
- `transport.Transport`: one request, retried until its deadline
- `transport.wait_until_healthy`, `transport.fetch_status`: GET /healthz and GET /v1/status
- `retry_after.retry_after_s`: the seconds that a Retry-After header asks for
"""
