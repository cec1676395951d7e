"""Rollout actors: vLLM engines in Ray actors, which sample responses and load new weights.

- `pool` (`RolloutPool`): the actors of a run, their placement, and their replacement when one dies
- `engine_settings` (`SETTINGS`): how an engine runs on each device
- `engine` (`RolloutEngine`): an engine
- `rollout_actor` (`RolloutActor`): the Ray actor around it
- `requests` (`EngineSpec`, `GroupRequest`, `environment`): what an actor is started with, and asked for
- `errors` (`WeightsGone`, `WeightsRefused`): the errors of engines and actors
- `weights`: the receiving end of a weight transfer
"""
