"""The receiving side of weight transfers: weights are fetched, checked against their manifest, loaded and read back.

- `receive` (`TransferStats`, `changed_names`, `fetch`, `holding`, `receive`, `timed`): buckets of a transfer from the
  object store or a broadcast
- `host_copy` (`HostCopy`): the tensors to which deltas are applied
- `native` (`BACKENDS`, `take_natively`): GPU-to-GPU updates through the weight transfer of vLLM
- `weights_in` (`check_manifest`, `engine_module`, `expected_adapter`, `expected_weights`, `write_adapter`): the checks
  before an engine loads tensors or an adapter
- `loading` (`Workers`): what the engine calls in its worker processes; `sharing` is how the tensors get there, `held`
  which part of each they hold, `placed` what several hold together, `experts` for tensors with the experts of a
  layer, `packed` for what a kernel has in an order of its own
- `in_worker`: what the worker processes do, also with their cache of keys and values
"""
