"""Reward servers: rule scorers and an LLM or embedding judge, served over HTTP with Ray Serve.

- `schema`: `ScoreRequest`, `ScoreRow` and `ScoreReply`, the JSON of POST /v1/score
- `offline.score_lines`: score the lines of a file without a cluster
- `scorers`: rule scorers, optional scores of the reasoning, and custom scorers
- `server`: the service, its HTTP application and its deployment on Ray Serve
- `client`: `RewardClient`, which scores groups and pauses a run whose servers fail
- `judging`: the judge of captions and reasoning, its endpoints and its tools
"""
