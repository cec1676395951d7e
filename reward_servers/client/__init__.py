"""The client of the reward servers: one POST per group, with retries and a pause when too much is lost.

- `client` (`RewardClient`): scores a group
- `transport` (`RewardServerError`, `ServiceInfo`, `fetch_status`, `wait_until_healthy`): one request, retried until
  its deadline; health and status
- `retry_after` (`retry_after_s`): the seconds that a Retry-After header asks for
"""
