"""Rollout actors: vLLM engines in Ray actors that sample responses and load new weights.

- `pool` (`RolloutPool`): the actors of a run, their placement, and their replacement when one dies
- `requests` (`EngineSpec`): what an actor is started with
- `errors` (`WeightsGone`, `WeightsRefused`): what can go wrong between a prompt and its rollouts
- `weights`: the receiving end of a weight transfer
"""
