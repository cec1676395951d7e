"""The main loop over Protocols: collect groups, update, publish weights.

- `loop`: the loop, and its recovery from a lost learner
- `parts` (`Step`): the Protocols of its parts, and the record of a step
- `objective` (`Imitation`, `Objective`, `PolicyGradient`): what a step learns from: rewards or demonstrations
- `preparer` (`ClipFetcher`, `Clips`, `Prepared`, `Preparer`): a prompt item -> its prompt and clips
- `producer` (`Answerer`, `GroupProducer`, `Scorer`, `sampling_seed`): a prompt item -> a scored group
- `collect` (`Collected`, `Skipped`, `awaited`, `skip_reason`): the groups of a step, and why one is skipped
- `staleness` (`evaluated_at_once`, `groups_under_way`, `lag_steps`, `prompts_held`): how far weights may lag behind
- `state` (`RunState`): what a checkpoint holds of the loop
"""
