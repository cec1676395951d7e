"""Losses of policy optimisation and imitation on packed rows.

- `logprobs` (`TokenHead`): log-probabilities of response tokens
- `objective` (`total_loss`): the loss of a packed batch
- `metrics` (`REDUCTIONS`, `RankStats`, `combine`): statistics of the loss, combined over ranks
- `schedule` (`BatchSchedule`): the learning rate of each batch
"""
