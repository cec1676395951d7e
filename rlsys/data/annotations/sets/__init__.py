"""The files of public data sets, as they are published.

- `records` (`SUFFIXES`, `Record`, `as_list`, `labelled_lines`, `read_records`): CSV, TSV, Parquet, Arrow, JSON and JSON
  lines as records
- `tables` (`ROLES`, `Columns`, `Table`): records as rows by a map of their columns
- `published` (`RepeatedKeys`, `charades_lines`, `nextgqa_table`, `parse_json`, `text_of`, `vidtab_lines`): text lines,
  tables with periods, and JSON with keys that occur twice
- `choices`: multiple-choice and numeric benchmarks
- `grounding`: periods in videos
- `got10k`: sequences of frames with a box each
- `dream1k`: chats with a reference caption
- `timebench` (`write_timebench`): questions about the length of any clips
"""
