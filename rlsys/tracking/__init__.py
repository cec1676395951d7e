"""The record of a run: metrics, samples and progress, kept on disk and sent to MLflow.

- `tracker` (`Tracker`): the record of one run
- `metrics` (`advantage_metrics`, `merge`, `reward_metrics`, `rewards_of`, `span_metrics`, `step_metrics`, `summarise`,
  `union`): metrics of a step, and how they are summarised
- `progress` (`FINE_TUNING`, `TRAINING`, `Progress`, `show_table`): lines and tables in the log
- `mlflow_store` (`MlflowRun`): a run in an MLflow store
- `store_address` (`TrackingError`, `quoted_path`, `require_driver`, `sqlite_uri`, `store_uri`): which store a config
  names
- `spool` (`read_records`): the record on disk
- `unsent` (`FOLDER`, `current_id`, `send`, `send_command`): records that the store does not have yet
- `uploader` (`Patience`, `StoreError`): time limits of an upload, and what a store does not accept
- `provenance` (`git_commit`): git commit and package versions
"""
