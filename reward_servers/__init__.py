"""Reward servers: rule scorers and an LLM or embedding judge, served over HTTP with Ray Serve.

- `schema` (`MAX_BODY_BYTES`, `MAX_ID_CHARS`, `MAX_ROWS`, `REPLIES`, `RequestSettings`, `SLOW_HEADER`, `ScoreReply`,
  `ScoreRequest`, `ScoreRow`, `ScorerFault`): the JSON of POST /v1/score
- `offline` (`score_lines`): the lines of a file scored without a cluster
- `scorers`: rule scorers, optional scores of the reasoning, and custom scorers
- `server`: the service, its HTTP application and its deployment on Ray Serve
- `client`: groups in, scored groups out; pauses a run whose servers fail
- `judging`: the judge of captions and reasoning, its endpoints and its tools
"""
