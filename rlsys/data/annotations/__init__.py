"""Annotation files -> prompt items, with every dirty row reported.

- `annotations` (`load_annotations`, `report_lines`): the usable rows of a file, and the report of `rlsys data check`
- `responses` (`WrittenResponse`, `read_responses`, `write_responses`): files of responses to imitate
"""
