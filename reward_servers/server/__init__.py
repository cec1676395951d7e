"""The reward service and its deployment on Ray Serve.

- `app` (`forget`, `launch`, `shutdown`, `stop`): start and stop reward servers on a Ray cluster
- `service` (`RewardService`): rows in, one reply per row, without any server
- `auth` (`TokenCheck`, `is_loopback`, `token_from_environment`): bearer tokens
- `status` (`status_lines`): the answer of /v1/status as text
"""
