"""The command line: one module per group of commands; `app.app` is the entry point.

- `app`: the `rlsys` command
"""
