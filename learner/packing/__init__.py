"""Shared-prompt packing of several groups into one pass, with each prompt computed once for all its responses.

- `rows` (`Response`, `Row`): prompts and responses to pack
- `packing` (`ClipKey`, `ModelLayout`, `PackedBatch`, `clip_key`, `pack`): rows as the tensors of one pass
- `attention` (`FORMS`, `Form`, `num_compilations`, `packed_by_row`, `packed_flex`): attention in which the responses
  to a prompt do not see each other
- `packed_mask` (`PackedMask`, `RowSpan`): which token of a pass sees which
- `linear_attention` (`ChannelConvolution`, `PackedDeltaNet`, `Rule`): layers that keep a state, forked at the prompt's
  end; `forks` is the order in which they read a pass
- `passes` (`plan_passes`): the assignment of rows to ranks and passes
- `mini_batches` (`part_of`, `plan_updates`): several optimiser updates from one batch
- `shards` (`OldLogprobs`, `RankShard`, `group_row`, `split_batch`): each rank's share of a batch
- `cost` (`BACKWARD_TIMES_FORWARD`, `CostModel`, `read_cost_model`): multiply-adds of a group
"""
