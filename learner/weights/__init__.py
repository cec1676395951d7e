"""The sending side of weight transfers: weights are gathered from the ranks, named, hashed, and sent or written.

- `publishing` (`Get`, `Publisher`, `Put`): one version to all actors
- `weights_out` (`ADAPTER_FOLDER`, `MAX_FILE_BYTES`, `ExportedTensor`, `assist`, `checkpoint_names`, `collect`,
  `exported_adapter`, `exported_model`, `names_of`, `read_folder`, `stream`, `unchanged`, `write_adapter`,
  `write_folder`): full models and adapters as named tensors, and as checkpoint folders
- `partitions` (`have_sums`, `identified_by_parts`): checksums of parameters that ZeRO-3 divides among the ranks
- `sending` (`Cues`, `Outgoing`): what rank 0 sends, and its word to the others when to gather it
- `nccl` (`over_nccl`): a broadcast among GPUs, to engines that receive through vLLM
"""
