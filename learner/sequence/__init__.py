"""Sequence parallelism: the ranks of a group compute every pass together, each with a part of its tokens and frames.

- `group` (`SequenceGroup`): the ranks that share their passes
- `shared_pass` (`SharedPass`): one rank's share of a pass
- `routes` (`Route`, `plan_route`): the exchange of rows between ranks
- `clip_parts` (`clip_part`, `patches_of`): the division of clips over the towers of a group
- `heads` (`over_heads`): attention by heads instead of by tokens
"""
