"""Tools for checking a judge: agreement with people, rescoring, and prompt injections.

- `commands` (`calibration_lines`, `probe_report`, `rescore_lines`): the tools as `rlsys judge` prints them
"""
