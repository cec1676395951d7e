"""Model weights in transit: what a version is, how its bytes travel from learner to actors, how it is checked.

- `version` (`WeightVersion`): the record that names one set of weights
- `manifest` (`Bucket`, `Manifest`, `NamedTensor`, `NamedTensors`, `Rendezvous`, `RunningDigest`, `TensorEntry`,
  `TensorSpec`, `WeightTransfer`, `differences`, `digest_of`, `entry_of`, `manifest_of`, `plan_buckets`): names,
  shapes and digests of tensors, and the buckets that carry them
- `delivery` (`deliver`): returns once every actor holds a version
- `broadcast` (`BroadcastFailed`, `BroadcastResult`, `BroadcastSender`, `Transmit`, `is_open`, `join`,
  `receive_broadcast`): a broadcast over gloo
- `tensors` (`ADAPTER_PREFIX`, `HEAD`, `as_named`, `as_tensor`, `embedding_name`, `spec_of`): between torch and bytes
- `check` (`TensorComparison`, `compare`, `largest_difference`): learner, actors and checkpoint compared tensor by
  tensor
"""
