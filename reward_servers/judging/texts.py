"""The judge's prompts: files in `prompts/`, filled so that no text can pose as an instruction."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "prompts"
_SECTION = re.compile(r"^=== (.*) ===\n", re.MULTILINE)
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"})
_MARKS = frozenset("<>[]&")
"""Characters of tags and role markers, `<|im_start|>` and `[INST]` among them."""


@dataclass(frozen=True, kw_only=True)
class JudgePrompt:
    """A prompt of the judge.

    name: of the file, with its version.  user: with `{{place}}`s.  second_try: what a bad answer adds.
    """

    name: str
    system: str
    user: str
    second_try: str

    def filled(self, **texts: str) -> str:
        """Return the user message. Every place is filled in one pass, so that no text can bring a place of its own."""
        return _fill(self.user, texts)

    def filled_again(self, problem: str, **texts: str) -> str:
        """Return the user message of a second try. problem: in our words, never in the data's."""
        return f"{self.filled(**texts)}\n\n{_fill(self.second_try, {'problem': problem})}"


@cache
def judge_prompt(name: str) -> JudgePrompt:
    """Return the prompt in `prompts/<name>.txt`."""
    parts = _SECTION.split((_FOLDER / f"{name}.txt").read_text(encoding="utf-8"))
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return JudgePrompt(
        name=name,
        system=parts[0].strip(),
        user=sections["user"].strip(),
        second_try=sections["second try"].strip(),
    )


def quoted(text: str) -> str:
    """Return `text` as a JSON string on one line that holds no tag, no role marker and no invisible character.

    They are escaped, not removed: the judge can still read that they were there. `<` never appears, so data
    cannot close the tag that it stands in, nor be read as a special token of a model.
    """
    return "".join(_escaped(char) for char in json.dumps(text, ensure_ascii=False))


def numbered(texts: Sequence[str]) -> str:
    """Return one quoted text a line, numbered from 1."""
    return "\n".join(f"{number}. {quoted(text)}" for number, text in enumerate(texts, start=1))


def _escaped(char: str) -> str:
    if char in _MARKS or unicodedata.category(char) in _HIDDEN:
        code = char.encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{code[at : at + 4]}" for at in range(0, len(code), 4))
    return char


def _fill(template: str, texts: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda place: texts[place.group(1)], template)
