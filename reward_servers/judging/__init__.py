"""The judge of captions and reasoning: a language model behind endpoints, or sentence embeddings.

- `judge.Judge`, `judge.JudgeTask`, `judge.build_judge`: the interface, one question, and the judge of a config
- `judge.EventJudge`: the judge that asks a language model
- `embedding.EmbeddingJudge`: the judge without a language model
- `which_judge.judge_kind`: which of them a config selects
- `calls`, `texts`: the prompts, their schemas, and the reading of answers
- `event_scores.event_scores`: verdicts on events -> recall, precision, F1
- `verdicts.VerdictCache`: answers kept in a SQLite file
- `local_judge.open_judge`: a judge in this process
- `served_model.with_served_model`: a judge model served with Ray Serve LLM
- `endpoints`: limits, retries and calls of judge endpoints
- `tools`: calibration, rescoring and the injection probe
"""
