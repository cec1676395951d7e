"""Runs: their parts assembled and checked, training, checkpoints, recovery, and a look back.

- `assemble` (`Stack`, `all_sources`, `engine_spec`, `judge_captions`, `launch_pool`, `launch_rewards`, `open_stack`,
  `prompt_builder`, `require_machine`, `with_model`): a config -> actors, learner, reward servers
- `check` (`Report`, `check`, `check_evaluation`, `check_services`): every check that needs no actor
- `continuation` (`StartOptions`): how a run starts: anew, resumed, or forked from a checkpoint
- `train` (`train`): `rlsys train`
- `sft` (`sft`): `rlsys sft`
- `demonstrations` (`num_demonstrations`, `read_lessons`): the responses that `rlsys sft` imitates
- `run` (`Summary`, `held_out_rows`, `write_summary`): the course of a run and its summary
- `plan_inputs` (`plan`): a config -> the plan of `rlsys plan`
- `inputs`: the rows and files that a config names
- `records`: what a run keeps in its output folder
- `evaluating`: `rlsys eval`, and the evaluations of a training run
- `replay` (`replay`, `rescore`): an earlier step again
"""
