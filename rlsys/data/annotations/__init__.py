"""Annotation files -> prompt items, with every dirty row reported.

- `annotations` (`Annotations`, `DirtyRow`, `load_annotations`, `missing_videos`, `report_lines`): the usable rows of a
  file, its dirty ones, and the report of `rlsys data check`
- `responses` (`WrittenResponse`, `read_responses`, `write_responses`): files of responses to imitate
"""
