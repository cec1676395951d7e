"""The lenient reader of options: which one a text names by its letter, in any notation, or by its own words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlsys.tasks.answers import Choice, Expected
from rlsys.tasks.lenient import MAX_SHORT_CHARS, only_value, plain_text

_WHOLE_LETTER = re.compile(r"[^A-Za-z0-9]*([A-Za-z])[^A-Za-z0-9]*")
_LEADING_LETTER = re.compile(
    r"[(\[{]?([A-Za-z])(?:[)\]}]\s*[.:。,、–—-]?|\s*[.:。、]|\s+[–—-]|(?=\s+is\s+(?:the\s|correct|right|true|my\s)))"
    r"\s*(?![A-Za-z]\.)(\S.*)",
    re.DOTALL,
)
_LETTER_AND_WORDS = re.compile(r"([A-Za-z])\s[\s(]{0,9}(\S.*)", re.DOTALL)
_LOWER = re.compile(
    r"(?:the\s)?(?:(?:final|correct|best)\s)?(?:answer|option|choice|答案|选项?)(?:\s+is)?[\s:为是=]{0,4}[(\[{]?([a-z])[)\]}]?[.。]?",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"(?:(?<![A-Za-z])(?:ans(?:wer)?|option|choice|letter|choose|select|pick|is|be|it'?s|its|think|with|probably|likely)\.?"
    r"|答案|选项?|选择)(?:\s+(?:is|be|it'?s|its|option))?"
    r"[\s:为是=]{0,4}[(\[{]?([A-Z])[)\]}]?(?![A-Za-z0-9'])",
    re.IGNORECASE,
)
_AFTER_COLON = re.compile(r"\w\s?[:=]\s{0,3}[(\[{]?[A-Z][)\]}]?\s?[.!。]?\s*\Z")
_DENIED = re.compile(
    r"(?:(?<![A-Za-z])(?:not|isnt|(?:cannot|cant)(?:\s+be)?|nor|except|but|without|exclude|rule\s+out|eliminate)\s+"
    r"(?:option\s+|choice\s+)?|不是|不选|不应选|并非|除了|排除)[(\[{]?[A-Z][)\]}]?(?![A-Za-z0-9'])"
    r"|(?<![A-Za-z0-9'])[A-Z][)\]}]?(?:\s+(?:(?:is|was|would\s+be|seems|looks)\s+(?:not|wrong|incorrect|false|unlikely|"
    r"impossible)|isnt|wasnt|cannot|cant)(?![a-z])|\s*(?:不对|不正确|错|不是))"
)
"""A letter that the text says is not the answer."""
_BRACKETED = re.compile(r"[(\[{]([A-Z])[)\]}]")
_LONE = re.compile(r"(?<![A-Za-z0-9.'])([A-Z])(?!\.?[A-Za-z0-9'])")
_ARTICLE = re.compile(r"\s+(?!or\b|and\b|vs\b|is\b)[a-z]")


def choice(text: str, expected: Expected) -> Choice | None:
    """Read the option that `text` names by its letter, its own words, or both; None if it could mean two."""
    plain = plain_text(text, MAX_SHORT_CHARS)
    if plain is None:
        return None
    plain = plain.strip()
    found = (_letter_in(plain, expected.options), _with_words(plain, expected.options))
    letter = only_value(letter for letter in found if letter is not None)
    known = {option for option, _ in expected.options}
    return None if letter is None or (known and letter not in known) else Choice(letter=letter)


def _letter_in(text: str, options: Sequence[tuple[str, str]]) -> str | None:
    if _DENIED.search(text):
        return None
    whole = _WHOLE_LETTER.fullmatch(text) or _LOWER.fullmatch(text)
    if whole is not None:
        return whole.group(1).upper()
    followed = _LETTER_AND_WORDS.fullmatch(text)
    if followed is not None and _with_words(followed.group(2), options) == followed.group(1).upper():
        return followed.group(1).upper()
    candidates = _candidates(text)
    leading = _LEADING_LETTER.fullmatch(text)
    if leading is not None and candidates <= {leading.group(1).upper()}:
        letter = leading.group(1).upper()
        others = _with_words(leading.group(2), options)
        return None if others not in (None, letter) else letter
    return only_value(candidates) if _is_named(text) else None


def _candidates(text: str) -> set[str]:
    """Return the capital letters that are words of their own, except "A" and "I" as words of a sentence."""
    return {
        match.group(1)
        for match in _LONE.finditer(text)
        if not (match.group(1) in "AI" and _ARTICLE.match(text, match.end()))
    }


def _is_named(text: str) -> bool:
    """Return whether the text presents its letter as an answer, and does not merely use it ("vitamin C")."""
    return any(pattern.search(text) for pattern in (_CUE, _BRACKETED, _AFTER_COLON)) or len(set(text.split())) == 1


def _with_words(text: str, options: Sequence[tuple[str, str]]) -> str | None:
    """Return the letter of the only option whose words `text` consists of; None if there is none."""
    wanted = _words(text)
    return only_value(letter for letter, words in options if wanted and _words(words) == wanted)


def _words(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!,;:。()")
