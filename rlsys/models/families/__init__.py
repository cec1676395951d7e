"""Model families: what distinguishes one from another, a file each, and the table of those that are supported.

- `family` (`CHUNK_TOKENS`, `Experts`, `Family`, `LinearAttention`, `TinyShape`, `VisionConfig`): the description of a
  family
- `internvl` (`MERGE`): what the learner's part of a family needs of it
- `table` (`DEFAULT`, `FAMILIES`, `FamilyName`, `family_named`): the supported
  families by the `model_type` of their config.json
"""
