"""What is in annotation files: the work of `rlsys data`.

- `report` (`inspect`, `report_lines`): what is wrong with the rows of a file, and with the files that they name
- `facts` (`facts_of`): what a video, a folder of frames or an image is like
- `decoding` (`undecodable`): clips that cannot be decoded
- `statistics` (`PLOT_SUFFIXES`, `clip_tokens`, `draw`, `statistics_lines`, `statistics_of`): distributions over the
  rows of a file
- `convert` (`row_schema`, `write_rows`): rows as files of other formats, and the schema of our own
"""
