"""Rule scorers: functions from a response and its truth to numbers in [0, 1].

- `scorers` (`Response`, `Ruled`, `default_names`, `rule_scores`, `ruled`, `score`): the built-in scores of a row, and
  of a text for interactive use
- `response` (`Response`): what a scorer sees of a response, custom scorers included
- `user_scorers` (`UserScorerError`, `load_user_scorers`): custom scorers, imported from `reward.scorers`
- `scorer_processes` (`ScorerProcesses`, `try_scorers`): the processes that custom scorers run in
- `judged_rows` (`Judged`, `ask_judge_about`): the questions that a row has for the judge
"""
