"""Video files, frame folders and images -> frames at true timestamps.

- `decode` (`decode`, `length_of`, `plan_grid`, `reads_fast`): one clip, its length, grid and reader
- `clips` (`ClipStore`): decoded clips in shared memory
- `budgets` (`largest_clip_tokens`, `largest_grid`, `largest_grids`): the largest clip within the limits on frames and
  pixels
- `images` (`FORMATS`, `files_of_folder`): image formats that may be opened, and the images of a frame folder, in order
- `errors` (`AnnotationError`, `ClipError`): what cannot be read
"""
