"""Inputs of a run: the rows and files that a config names, and what makes two of them the same.

- `clips` (`clip_store`): the store of decoded clips
- `items` (`Table`, `held_out_items`, `load_items`, `order_of`, `read_rows`, `training_items`, `with_num_steps`): the
  rows to train on and to evaluate
- `hub_paths` (`with_local_files`): what a config names of the Hugging Face hub -> the local cache
- `identity` (`BASE_MODEL`, `Identity`, `changed_settings`, `changes`, `evaluation_identity`, `identity`,
  `require_same`): which run two configs are
- `source_metrics` (`SourceMetrics`): metrics by the source of the rows
"""
