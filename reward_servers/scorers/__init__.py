"""Rule scorers: functions from a response and its truth to numbers in [0, 1].

- `scorers` (`UserScorer`, `default_names`, `load_user_scorers`, `rule_scores`, `score`): the scores of a row, and of
  a text for interactive use
- `response` (`Response`): what a scorer sees of a response, custom scorers included
- `user_scorers` (`UserScorer`, `load_user_scorers`): custom scorers, imported from `reward.scorers`
- `judged_rows` (`Judged`, `ask_judge_about`): the questions that a row has for the judge
"""
