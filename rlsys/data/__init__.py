"""Data: annotation files, video files, and the order in which prompts are sampled.

- `sampler` (`Sampler`): the order of prompts
- `annotations`: annotation files -> prompt items
- `video`: video files -> frames at true timestamps
"""
