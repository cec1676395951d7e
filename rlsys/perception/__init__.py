"""Iterative perception: what a model is shown next, decided by pure functions of what it has answered.

- `selection` (`Segment`, `Selection`, `select_segments`): the frames of a later round around the periods of a clue
- `crop` (`crop_around`): the part of a picture around the boxes of a clue
- `clues` (`Clue`, `clue_of`, `clue_scores`): periods and boxes in a response
- `media` (`WholeClip`, `whole_of`): segments and crops as media of a prompt
- `turns` (`NextTurn`, `Round`, `Show`, `Stop`, `item_of`, `look_again`, `shown_after`): rounds of a row, and what the
  next one shows
- `zoom` (`zoom`): a part that the response requests
- `choose` (`first_item`, `largest_items`, `later_data`, `next_turn_of`): the function that a config names, and the
  largest prompts that it makes
- `controls` (`largest_one_round`, `one_round`, `oracle_window`, `random_window`): second looks at another part than the
  clue's, and a single look at the cost of several
"""
