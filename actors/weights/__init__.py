"""The receiving side of weight transfers: weights are fetched, checked against their manifest, and loaded.

- `receive` (`TransferStats`, `WeightsIterator`, `changed_names`, `fetch`, `holding`, `receive`): buckets of a
  transfer from the object store or a broadcast
- `native` (`BACKENDS`, `take_natively`): GPU-to-GPU updates through the weight transfer of vLLM
- `weights_in` (`check_manifest`, `compared`, `engine_module`, `expected_adapter`, `expected_weights`,
  `stale_adapter`, `stale_parameters`, `write_adapter`): the checks before and after an engine loads tensors or an
  adapter
"""
