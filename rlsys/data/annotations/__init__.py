"""Annotation files -> prompt items, with every dirty row reported.

- `annotations` (`Annotations`, `DirtyRow`, `UnanswerableRow`, `load_annotations`, `missing_videos`):
  the usable rows of a file, its dirty ones, and those that only evaluation counts
- `report` (`report_lines`): the report of `rlsys data check`
- `rows` (`AnnotationRow`, `BadLine`, `Counted`, `Problem`, `Repeats`, `Seconds`, `broken_row`, `is_number`,
  `read_glue`, `read_span`, `short`, `stated_span`): rows and what can be wrong with them
- `options` (`read_options`): options as data sets write them
- `clues` (`Size`): clues in time and space
- `vtts` (`VttsEntry`, `with_size`): our own JSON lines
- `sets`: the files of public data sets, as they are published
- `responses` (`WrittenResponse`, `read_responses`, `write_responses`): files of responses to imitate
"""
