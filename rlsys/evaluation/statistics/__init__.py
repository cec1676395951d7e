"""Statistics of an evaluation: intervals, slices, comparisons, samples and baselines.

- `bootstrap` (`Interval`, `bootstrap`, `intervals`): confidence intervals over videos
- `reliability` (`reliability`): confidence of answers against their scores
- `slices` (`Slices`, `slices`): rows by duration, span and kind of question
- `comparison` (`Comparison`, `Difference`, `compare`): two evaluations of the same rows
- `samples` (`majority`, `pass_at_k`): several samples of a row
- `constant_interval` (`best_interval`): the interval with the highest mean IoU
- `baselines` (`Baseline`, `baselines`): answers that never look at a video
"""
