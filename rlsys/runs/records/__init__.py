"""Records of a run: what it keeps in its output folder.

- `checkpoint` (`Best`, `Checkpoints`, `complete_checkpoints`, `find`, `find_whole`, `load_state`): checkpoints on
  disk
- `checkpoint_manifest` (`CheckpointDamaged`, `verify`, `verify_model`): size and digest of every file of a checkpoint
- `ledger` (`Entry`, `Ledger`, `entry`): what became of every prompt
- `saved_group` (`FOLDER`, `SavedGroup`, `as_it_was`): a group on disk, put together again with prompts made anew
- `rollout_store` (`SavedRollouts`, `SavedStep`, `read_step`, `settings_digest`, `step_file`):
  the rollouts of the steps since the oldest checkpoint
- `pass_rates` (`PassRates`): pass rates of rows so far, from the ledger
- `rollout_page` (`record_rollout_page`): pages of sampled rollouts
- `run_file` (`Before`, `HeldOut`, `RUN_FILE`, `RunFile`, `SUMMARY_FILE`, `forget_summary`, `name_on_cluster`,
  `read_before`, `read_run_file`, `write_before`, `write_json`, `write_run_file`): what a run records of itself in its
  folder
- `run_lock` (`OutputDirUnusable`, `run_lock`): one process at a time in a folder
- `output_space` (`checkpoint_bytes`, `output_problems`): whether the folder can be written and has room
"""
