"""Section `answers`: how answers are parsed from responses."""

from __future__ import annotations

from typing import Literal

from rlsys.config.part import Part

Reading = Literal["paper", "lenient", "strict"]
"""How strictly an answer is parsed. See `rlsys.tasks.readings`."""


class AnswersConfig(Part):
    """How the answers in responses are parsed, in training and in evaluation."""

    reading: Reading = "paper"
    """"paper" parses as the code cited for each task does, "lenient" accepts the spellings that evaluation suites
    accept unless they are ambiguous, "strict" only the format that the prompt requests. See docs/answers.md."""
