"""The reward service and its deployment on Ray Serve.

- `app.launch`, `app.shutdown`, `app.stop`: start and stop reward servers on a Ray cluster
- `service.RewardService`: rows in, one reply per row, without any server
- `web.build_app`: the service as an HTTP application
- `auth.TokenCheck`, `auth.token_from_environment`: bearer tokens
- `status.status_lines`: the answer of /v1/status as text
- `exported_metrics.Exported`: counters as Ray and Prometheus metrics
"""
