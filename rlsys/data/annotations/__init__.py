"""Annotation files -> `PromptItem`s, with every dirty row reported.

- `annotations.load_annotations`: the usable rows of a file
- `annotations.report_lines`: the report of `rlsys data check`
- `formats.FORMATS`: the supported file formats
- `rows.AnnotationRow`, `rows.Problem`: one row and what is wrong with it
- `media.video_spec`: which frames of a video a prompt shows
- `responses.read_responses`, `responses.write_responses`: files of responses to imitate
"""
