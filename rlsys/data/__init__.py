"""Data: annotation files, video files, and the order in which prompts are sampled.

- `sampler` (`Sampler`): the order of one list of rows
- `mixture` (`PromptOrder`, `Rates`, `prompt_order`): the order of the rows of all sources
- `annotations`: annotation files -> prompt items
- `inspection`: reports, statistics and conversion of annotation files
- `video`: video files -> frames at true timestamps
"""
