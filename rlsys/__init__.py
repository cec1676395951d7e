"""What every process of a run shares: records, config, task table, data, the main loop, and the command line.

- `types` (`Clip`, `ClipInfo`, `ClipRef`, `DEFAULT_PATCH`, `ImageSpec`, `Json`, `LaterRound`, `MediaSpec`, `PATCH_PX`,
  `PatchShape`, `Prompt`, `PromptItem`, `Rollout`, `RolloutGroup`, `Sampling`, `Score`, `ScoredGroup`, `Status`,
  `TrainBatch`, `VideoSpec`, `named_fields`): the records that cross process borders
- `errors` (`CheckpointError`, `CheckpointNotConverted`, `CheckpointUnsafe`, `FramesLost`, `LearnerIntact`,
  `LearnerLost`, `NotWritten`, `PassRateOutside`, `RowUnusable`, `TruthOutside`, `UserError`, `WeightsDiffer`): errors
  that a person can fix, and faults that a run recovers from
- `clock` (`Clock`, `Turn`): seconds by phase, and turns at a shared GPU
- `end_signals` (`defer_signals`, `end_on_signals`, `name_of_end`, `rearm`): an orderly end on SIGINT, SIGTERM, SIGHUP
  and SIGQUIT
- `env`: every environment variable that is read or set
- `files` (`DISK_ERRORS`, `UNFINISHED`, `aside`, `free_files`, `in_memory`, `is_device`, `read_json`, `rename_synced`,
  `require_regular`, `sync`, `sync_tree`, `why_no_temporary_folder`, `why_not_writable`, `write_output`, `write_whole`):
  files that are complete or absent after a crash
- `json_lines` (`in_short`, `json_lines`, `why_no_lines`): files of one JSON object a line
- `hub` (`HubError`, `Reference`, `blobs_of`, `fetch`, `here`, `reference`, `snapshot_of`): the Hugging Face hub and its
  cache
- `locks` (`NO_LOCKS`, `hold`): locks on files, on file systems without them too
- `temporary` (`MAX_TEMP_DIR`, `claim_folder`, `end_processes_in`, `is_own`, `short_temp_dir`, `variables_for`):
  temporary folders that go with their process
- `lean_imports` (`lean_imports`): a faster import of vLLM and DeepSpeed
- `urls` (`MASK`, `has_secret`, `masked_tree`, `masked_url`, `why_not_http`): URLs without their secrets
- `commands`: the command line
- `demo`: the demos
- `planning`: `rlsys plan`
- `runs`: what one run is made of
- `evaluation`: held-out metrics
- `tracking`: MLflow and the record on disk
- `loop`: the main loop
- `perception`: what a later round shows
- `algorithm`: advantages and batches
- `data`: annotations and video
- `models`: prompts, positions and sizes of model families
- `tasks`: the task table
- `config`: run configs
- `weights`: weights in transit
"""
