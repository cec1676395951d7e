"""Model families: what distinguishes one from another, a file each, and the table of those that are supported.

- `family` (`CHUNK_TOKENS`, `Experts`, `Family`, `LinearAttention`, `TinyShape`, `VisionConfig`): the description of a
  family
- `table` (`DEFAULT`, `FAMILIES`, `FamilyName`, `family_named`): the supported
  families by the `model_type` of their config.json
"""
