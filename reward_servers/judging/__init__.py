"""The judge of captions and reasoning: a language model behind endpoints, or sentence embeddings.

- `judge` (`Judge`, `JudgeTask`): the interface, and one question
- `build` (`build_judge`): the judge that a config asks for
- `which_judge` (`judge_kind`): the kind of judge that a config selects
- `first_request` (`with_first_request`): what a person must change at the endpoints, found before a run starts
- `unusable` (`NEEDS_CHANGE`, `JudgeUnusable`, `is_final`): a judge that no retry makes usable
- `event_scores` (`EventVerdict`, `event_scores`): verdicts on events -> recall, precision, F1
- `local_judge` (`in_order`, `judged_in_order`, `open_judge`, `pumped`): a judge in this process
- `served_model` (`with_served_model`): a judge model served with Ray Serve LLM
- `endpoints`: limits, retries and calls of judge endpoints
- `tools`: calibration, rescoring and the injection probe
"""
