"""Rule scorers: functions from a response and its truth to numbers in [0, 1].

- `scorers.SCORERS`: scorer name of the task table -> function
- `scorers.rule_scores`: the scores of one row that need no judge
- `scorers.score`: the default scores of one text, for interactive use
- `response.Response`: what a scorer sees of a response, custom scorers included
- `user_scorers.load_user_scorers`: import the custom scorers of `reward.scorers`
- `judged_rows.ask_judge_about`: the questions that a row has for the judge
"""
