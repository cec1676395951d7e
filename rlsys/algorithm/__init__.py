"""The algorithm between scores and loss: advantages, reward shaping and batches, as pure functions.

- `advantages` (`group_advantages`): advantages within a group
- `batch` (`group_advantages_of`, `has_spread`, `imitation_batch`, `make_batch`, `require_scores`): scored groups ->
  the batch of an update
- `order_contrast` (`wants_contrast`, `with_order_contrast`): the score that compares responses to ordered and shuffled
  frames
- `trajectories` (`clue_advantages`, `clue_qualities`, `clue_terms`, `round_advantages`, `trajectories`): responses that
  are asked again, and what each of their rounds is worth
- `reward_shaping` (`Shaped`, `needs_reference`, `shape_rewards`): overlong shaping and the KL penalty
"""
