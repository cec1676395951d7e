"""Runs: their parts assembled and checked, training, checkpoints, recovery, and a look back.

- `assemble` (`Stack`, `launch_rewards`, `open_stack`, `with_model`): a config -> actors, learner, reward servers
- `check` (`Report`, `check`, `check_services`): every check that needs no actor
- `continuation` (`StartOptions`): how a run starts: anew, resumed, or forked from a checkpoint
- `hub_paths` (`with_local_files`): what a config names of the Hugging Face hub -> the local cache
- `items` (`held_out_items`, `load_items`, `training_items`, `with_num_steps`): the rows to train on and to evaluate
- `train` (`train`): `rlsys train`
- `sft` (`sft`): `rlsys sft`
- `demonstrations` (`num_demonstrations`, `read_lessons`): the responses that `rlsys sft` imitates
- `run` (`Summary`, `held_out_rows`, `write_summary`): the course of a run and its summary
- `checkpoint` (`find`, `load_state`): checkpoints on disk
- `ledger` (`Entry`, `entry`): what became of every prompt
- `plan_inputs` (`plan`): a config -> the plan of `rlsys plan`
- `responder` (`open_answering_pool`): what answers an evaluation: actors without a learner, or an endpoint
- `evaluate` (`EvalOptions`, `run_evaluation`): `rlsys eval`
- `compare_evaluations` (`compare_evaluations`): `rlsys eval compare`
- `replay` (`replay`, `rescore`): an earlier step again
"""
