"""Video files, frame folders and images -> frames at true timestamps.

- `decode` (`decode`, `plan_grid`): one clip, and the grid that its frames will have
- `clips` (`ClipStore`): decoded clips in shared memory
- `budgets` (`largest_grid`, `largest_grids`): the largest grid within the limits on frames and pixels
- `images` (`files_of_folder`): the images of a frame folder, in order
- `errors` (`AnnotationError`, `ClipError`): what cannot be read
"""
