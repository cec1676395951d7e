"""Model weights in transit: what a version is, how its bytes travel from learner to actors, how it is checked.

- `manifest`: `TensorSpec`, `NamedTensor`, `Manifest`, `Bucket`, `WeightTransfer`, `Rendezvous`; `digest`
- `version`: `WeightVersion`, the record that names one set of weights
- `delivery`: `deliver`, which returns once every actor holds a version
- `broadcast`: `BroadcastSender`, `receive_broadcast` (gloo)
- `tensors`: `as_named`, `as_tensor`, between torch and bytes
- `check`: `compare` learner, actors and checkpoint
"""
