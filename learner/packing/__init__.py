"""Shared-prompt packing: several groups in one pass, each prompt computed once for all of its responses.

- `rows` (`Response`, `Row`): prompts and responses to pack
- `packing` (`ClipKey`, `ModelLayout`, `PackedBatch`, `clip_key`, `pack`): rows as the tensors of one pass
- `attention` (`FORMS`): attention in which the responses to a prompt do not see each other
- `passes` (`plan_passes`): which rows go into which pass
- `mini_batches` (`part_of`, `plan_updates`): several optimiser updates from one batch
- `shards` (`OldLogprobs`, `RankShard`, `group_row`, `split_batch`): the share of each rank
- `cost` (`CostModel`, `read_cost_model`): multiply-adds of a group
"""
