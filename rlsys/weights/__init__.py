"""Model weights in transit from learner to actors: versions, manifests, transfers and checks.

- `version` (`WeightVersion`): the record that names one set of weights
- `manifest` (`Bucket`, `Delta`, `Manifest`, `NamedTensor`, `NamedTensors`, `PublishStats`, `Rendezvous`,
  `RunningDigest`, `TensorEntry`, `TensorSpec`, `Uncopied`, `WeightTransfer`, `are_different`, `differences`,
  `digest_of`, `manifest_of`, `plan_buckets`, `with_copies`): names, shapes and checksums of tensors, and the
  buckets that carry them
- `checksum` (`Sums`, `sums_of`): the checksum of a tensor's bytes
- `delta` (`apply`, `as_sent`, `carriers`, `encode`, `num_bytes`, `num_numbers`): what changed since
  the version before
- `stored` (`stored_tensors`): a bucket's tensors from the object store
- `delivery` (`deliver`): a version delivered to every actor
- `broadcast` (`BroadcastFailed`, `BroadcastResult`, `BroadcastSender`, `Transmit`, `is_open`, `join`,
  `receive_broadcast`): a broadcast over gloo
- `sockets` (`engine_sockets`, `rank_sockets`): the network interfaces on which groups listen
- `tensors` (`ADAPTER_PREFIX`, `HEAD`, `all_sums`, `as_named`, `as_tensor`, `embedding_name`, `entries_of`,
  `has_head`,
  `fetched_sums`, `is_finite`, `spec_of`, `sums_on_device`): conversion between torch tensors and bytes, and checksums
  computed where a tensor is
- `check` (`TensorComparison`, `compare`, `largest_difference`): comparison of the weights that learner, actors
  and checkpoint hold
"""
