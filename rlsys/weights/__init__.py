"""Model weights in transit from learner to actors: versions, manifests, transfers and checks.

- `version` (`WeightVersion`): the record that names one set of weights
- `manifest` (`Bucket`, `Manifest`, `NamedTensor`, `NamedTensors`, `Rendezvous`, `RunningDigest`, `TensorEntry`,
  `TensorSpec`, `WeightTransfer`, `differences`, `digest_of`, `entry_of`, `manifest_of`, `plan_buckets`): names,
  shapes and digests of tensors, and the buckets that carry them
- `delivery` (`deliver`): a version delivered to every actor
- `broadcast` (`BroadcastFailed`, `BroadcastResult`, `BroadcastSender`, `Transmit`, `is_open`, `join`,
  `receive_broadcast`): a broadcast over gloo
- `sockets` (`engine_sockets`, `rank_sockets`): the network interfaces on which groups listen
- `tensors` (`ADAPTER_PREFIX`, `HEAD`, `as_named`, `as_tensor`, `embedding_name`, `spec_of`): conversion between
  torch tensors and bytes
- `check` (`TensorComparison`, `compare`, `largest_difference`): comparison of the weights that learner, actors
  and checkpoint hold
"""
