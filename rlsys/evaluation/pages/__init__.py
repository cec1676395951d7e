"""Self-contained HTML pages of rows with their frames, spans, boxes and answers, that need no network.

- `page` (`Curve`, `Section`, `Table`, `write_page`): tables and curves, and a browser of rows
- `preview` (`write_preview`): rows of an annotation file, before a model has answered
- `rounds` (`ShownRound`, `page_rounds`): the rounds of a row
- `rows` (`page_row`): a row with what it shows
- `thumbnails` (`ROUND_FRAMES`, `Strip`, `Thumbnail`, `strips_of_clips`, `thumbnails`, `thumbnails_of_clip`,
  `thumbnails_of_rounds`): small pictures of the frames that a model was shown
"""
