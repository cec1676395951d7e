"""Runs: their parts assembled and checked, training, checkpoints, recovery, and a look back.

- `assemble` (`Stack`, `engine_spec`, `judge_captions`, `launch_pool`, `launch_rewards`, `open_stack`, `prompt_builder`,
  `require_machine`, `with_model`): a config -> actors, learner, reward servers
- `check` (`Report`, `check`, `check_evaluation`, `check_services`): every check that needs no actor
- `continuation` (`StartOptions`): how a run starts: anew, resumed, or forked from a checkpoint
- `hub_paths` (`with_local_files`): what a config names of the Hugging Face hub -> the local cache
- `items` (`held_out_items`, `load_items`, `training_items`, `with_num_steps`): the rows to train on and to evaluate
- `train` (`train`): `rlsys train`
- `sft` (`sft`): `rlsys sft`
- `demonstrations` (`num_demonstrations`, `read_lessons`): the responses that `rlsys sft` imitates
- `run` (`Summary`, `held_out_rows`, `write_summary`): the course of a run and its summary
- `checkpoint` (`Best`, `Checkpoints`, `find`, `load_state`): checkpoints on disk
- `run_file` (`RUN_FILE`, `read_run_file`): what a run records of itself in its folder
- `run_lock` (`run_lock`): one process at a time in a folder
- `ledger` (`Entry`, `entry`): what became of every prompt
- `plan_inputs` (`plan`): a config -> the plan of `rlsys plan`
- `evaluating`: `rlsys eval`, and the evaluations of a training run
- `replay` (`replay`, `rescore`): an earlier step again
"""
