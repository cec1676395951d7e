"""Annotation files -> prompt items, with every dirty row reported.

- `annotations` (`Annotations`, `DirtyRow`, `UnanswerableRow`, `completed`, `dirty_row`, `folder_of`,
  `load_annotations`, `missing_videos`):
  the usable rows of a file, its dirty ones, and those that only evaluation counts
- `reading` (`printable`, `read_rows`, `repeated_text`): files -> rows with their problems
- `formats` (`FORMATS`): the formats with their readers
- `media` (`VIDEO_SUFFIXES`, `folder_fps`, `num_images`, `picture_size`, `video_spec`, `with_patches`): where media are,
  and which frames are shown
- `rows` (`AnnotationRow`, `BadLine`, `Counted`, `Problem`, `Repeats`, `Seconds`, `broken_row`, `is_number`,
  `read_glue`, `read_span`, `short`, `stated_span`): rows and what can be wrong with them
- `options` (`Option`, `read_options`, `right_letter`): options as data sets write them
- `times` (`listed_periods`, `one_period`, `plain_seconds`, `plain_times`): times and periods as data sets write them
- `clues` (`Size`): clues in time and space
- `vtts` (`VttsEntry`, `with_size`): our own JSON lines
- `sets`: the files of public data sets, as they are published
- `responses` (`WrittenResponse`, `read_responses`, `write_responses`): files of responses to imitate
"""
