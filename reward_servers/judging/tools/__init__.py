"""Tools for checking a judge: agreement with people, rescoring, and prompt injections.

- `calibration.calibrate`: agreement and kappa with people's labels
- `rescoring.rescore`: stored evidence under other tiers or another judge
- `injections.probe_injections`: whether a prediction can raise its score by giving orders
- `commands`: the same for `rlsys judge`
"""
