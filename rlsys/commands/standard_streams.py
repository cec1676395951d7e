"""Standard streams that are open and take every character, whoever started this process."""

from __future__ import annotations

import io
import os
import sys


def open_standard_streams() -> None:
    """Open closed standard streams on the null device, and let output escape what its encoding lacks.

    A file opened later would otherwise take the number of a closed stream, and what libraries print would go into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
