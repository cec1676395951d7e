"""`rlsys plan`: memory and step times by arithmetic, without starting anything.

- `plan` (`BYTES`, `STEP_TOKENS`, `Assumptions`, `Prompts`, `Section`, `assumptions`, `average`, `engine_room`,
  `engine_section`, `later_prompts`, `mean_response`, `payload_bytes`, `step_bytes`, `token_section`): engines, tokens,
  and the assumptions behind them
- `plan_learner` (`RankMemory`, `learner_section`, `rank_memory`): memory of the learner ranks
- `plan_colocated` (`shared_section`): memory of GPUs that ranks and engines share
- `plan_store` (`clip_bytes`, `is_attached`, `store_section`, `weights_bytes`): use of the object store
- `plan_times` (`Measured`, `phase_times`, `time_section`): seconds of a step by phase
"""
