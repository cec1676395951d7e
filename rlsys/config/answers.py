"""The section of a config about how answers are read."""

from __future__ import annotations

from typing import Literal

from rlsys.config.part import Part

Reading = Literal["paper", "lenient", "strict"]
"""How a block of a response becomes an answer. See `rlsys.tasks.readings`."""


class AnswersConfig(Part):
    """How the answers in responses are read, in training and in evaluation."""

    reading: Reading = "paper"
    """"paper" reads as the code cited for each task does, "lenient" takes the spellings that evaluation suites take
    and no ambiguous one, "strict" takes only the format that the prompt asks for. docs/answers.md compares them."""
