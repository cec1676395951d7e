"""Configs of runs, with one module per section, checked before anything starts.

- `run` (`AlgorithmConfig`, `ClusterConfig`, `ConfigError`, `DataConfig`, `EvaluationConfig`, `JudgeConfig`,
  `LearnerConfig`, `LoraConfig`, `ModelConfig`, `PerceptionConfig`, `RewardConfig`, `RolloutConfig`, `RunConfig`,
  `ScoreSettings`, `SftConfig`, `TrainConfig`, `WeightsConfig`, `field_lines`, `is_for_services`, `load`,
  `load_services`, `parse`, `parse_section`): the whole config with its sections, and loading
- `part` (`ConfigError`, `LONGEST_S`): the base of all sections, and the error of a wrong key or value
- `algorithm` (`AlgorithmConfig`): section `algorithm`
- `data` (`DataConfig`, `PassRateConfig`, `Source`, `is_used`, `metric_name`, `resolved`, `sources`): section `data`,
  and its sources with all their settings
- `evaluation` (`OF_ROUNDS`, `WINDOWS`, `Control`, `EndpointConfig`, `EvaluationSet`): section `evaluation`
- `perception` (`PerceptionConfig`): section `perception`
- `weights` (`wants_deltas`): section `weights`
- `train` (`TrainConfig`): section `train`
- `answers` (`Reading`): how answers are read
- `reading` (`apply_override`): files and overrides as trees of values
- `bundled`: the configs that the package contains
"""
