"""Annotation files -> prompt items, with every dirty row reported.

- `annotations` (`Annotations`, `DirtyRow`, `UnanswerableRow`, `load_annotations`, `missing_videos`, `report_lines`):
  the usable rows of a file, its dirty ones, those that only evaluation counts, and the report of `rlsys data check`
- `responses` (`WrittenResponse`, `read_responses`, `write_responses`): files of responses to imitate
"""
