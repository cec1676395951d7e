"""Video files, frame folders and images -> frames at true timestamps.

- `decode` (`decode`, `decode_all`, `plan_clip`, `plan_grid`, `reads_fast`, `shape_of`): one clip or several of a file,
  its metadata, grid, reader, length and size
- `clips` (`ClipStore`): decoded clips in shared memory
- `processes` (`each_apart`): work on files in processes that may hang or die
- `budgets` (`MERGED`, `largest_clip_tokens`, `largest_grid`, `largest_grids`, `patch_bytes`): the largest clip within
  the limits on frames and pixels
- `frames` (`MERGED`, `TEMPORAL_PATCH`, `count_frames`): the frames that are shown, and their size
- `images` (`FORMATS`, `files_of_folder`, `shown_size`): image formats that may be opened, the images of a frame
  folder, in order, and the size of one
- `pixels` (`flattened`): an image as RGB, as viewers show it
- `readers`: video files -> times and frames
- `errors` (`AnnotationError`, `ClipError`): what cannot be read
"""
