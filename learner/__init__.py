"""The learner: DeepSpeed ranks that compute the loss, update the policy and publish its weights.

- `group` (`LearnerGroup`): the ranks as one object, through which a run uses them
- `engine` (`LearnerEngine`, `find_store`, `join_ranks`, `open_store`): one rank: model, optimiser and packed passes
- `spec` (`LearnerSpec`): the settings that ranks are loaded with
- `checkpoint_layout` (`LAYOUT_FILE`, `layout_of`, `must_reshard`, `read_layout`): whether a checkpoint can be loaded
- `packing`: shared-prompt packing
- `sequence`: passes that several ranks compute together
- `loss`: losses and their statistics
- `model`: the policy with its frozen parts and adapters
- `weights`: the sending end of a weight transfer
"""
