"""The lenient reader of options: which one a text names by its letter, in any notation, or by its own words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rlsys.tasks.answers import Choice, Expected
from rlsys.tasks.lenient import MAX_SHORT_CHARS, only_value, plain_text

_WORD = r"[^\W\u2e80-\uffff]"
"""A character of a word in a language that puts spaces between words."""
_WHOLE_LETTER = re.compile(r"[^\w]*([A-Za-z])[^\w]*")
_LEADING_LETTER = re.compile(
    r"[(\[{]?([A-Za-z])(?:[)\]}]\s*[.:。、,–—-]?|[ \t]*[.:。、\n]|\s+[–—-]|(?=\s+is\s+(?:the|correct|right|true|my)\b)"
    r"|(?=,?\s+(?:because|since)\s))\s*(?![A-Za-z]\.)(\S.*)",
    re.DOTALL,
)
_LETTER_AND_WORDS = re.compile(r"[(\[{]?([A-Za-z])(?=\W)[)\]}]?\s*[.:。、,–—-]?\s*(\S.*)", re.DOTALL)
_INTRODUCTION = (
    r"(?:the\s)?(?:(?:final|correct|best|right)\s)?(?:answer|option|choice|答案|选项?)(?:\s+is)?(?![A-Za-z])"
    r"[\s:为是=]{0,4}"
)
_INTRODUCED = re.compile(_INTRODUCTION, re.IGNORECASE)
_LOWER = re.compile(_INTRODUCTION + r"[(\[{]?([a-z])[)\]}]?[.。]?", re.IGNORECASE)
_CUE = re.compile(
    rf"(?i:(?:(?<!{_WORD})(?:ans(?:wer)?|option|choice|letter|choose|select|pick|is|be|est|ist|es|é|è|it'?s|its|think|with"
    r"|probably|likely)\.?|答案|选项?|选择)(?:\s+(?:is|be|it'?s|its|option))?)[\s:为是=]{0,4}[(\[{]?([A-Z])[)\]}]?"
    rf"(?!{_WORD}|')"
)
_AFTER_COLON = re.compile(r"\w\s?[:=]\s{0,3}[(\[{]?([A-Z])[)\]}]?\s?[.!。]?\s*\Z")
_BRACKETED = re.compile(r"[(\[{]([A-Z])[)\]}]")
_LONE = re.compile(rf"(?<![.']|{_WORD})([A-Z])(?!\.?{_WORD}|')")
_FURTHER = re.compile(rf"[(\[{{]([a-z])[)\]}}]|\b(?:or|and)\s+([b-z])(?!{_WORD}|[-'])")
"""Small letters that name an option beside another one: in brackets, or after a conjunction."""
_ARTICLE = re.compile(r"\s+(?!or\b|and\b|vs\b|is\b)[^\W\d_A-Z\u2e80-\uffff]")
_CLAUSE_END = re.compile(rf"[.,;!?\n。，；]|\b(?:because|since|so|therefore|but(?!\s+[(\[]?[A-HJ-Z](?!{_WORD})))\b")
_DENIAL = re.compile(
    r"(?i:\b(?:not|never|no|nor|neither|cannot|hardly|(?:is|was|ca|do|does|did|wo|would|could|should|are)n'?t|cant|doubt"
    r"|wrong|incorrect|false|unlikely|except|but|without|exclude|instead|rather|rule|eliminate|if|unless|unlike"
    r"|nicht|kein|pas|não|nao|non|не|нет)\b)|不|并非|除了|排除|错|没"
)
_DENIED_AFTER = re.compile(
    r"[)\]}]?(?:\s+(?:(?:is|was|would\s+be|seems|looks|ist|est|es|é|è)\s+(?:not|wrong|incorrect|false|unlikely|impossible"
    r"|out|falsch|nicht|faux|fausse|falso|falsa|incorrect[oa])|isnt|wasnt|cannot|cant|does\s+not|doesnt)(?![a-z])"
    r"|\s*(?:选项)?(?:是|为)?(?:不|错|假)|\s?\(?(?:wrong|incorrect|false)\b|[은는이가]?\s?(?:아니|아님|틀)|(?:では|じゃ)?な[いく]|は(?:間違|違|誤))"
)


def choice(text: str, expected: Expected) -> Choice | None:
    """Read the option that `text` names by its letter, its own words, or both; None if it could mean two."""
    plain = plain_text(text, MAX_SHORT_CHARS)
    if plain is None:
        return None
    plain = plain.strip()
    options = {letter: _words(plain_text(words) or "") for letter, words in expected.options}
    found = (_letter_in(plain, options), _with_words(plain, options))
    letter = only_value(letter for letter in found if letter is not None)
    return None if letter is None or (options and letter not in options) else Choice(letter=letter)


def _letter_in(text: str, options: Mapping[str, str]) -> str | None:
    whole = _WHOLE_LETTER.fullmatch(text) or _LOWER.fullmatch(text)
    if whole is not None:
        return whole.group(1).upper()
    followed = _LETTER_AND_WORDS.fullmatch(text)
    if followed is not None and options.get(followed.group(1).upper()) == _words(followed.group(2)):
        return followed.group(1).upper()
    candidates = _candidates(text)
    leading = _LEADING_LETTER.fullmatch(text)
    if leading is not None and candidates <= {leading.group(1).upper()}:
        letter, others = leading.group(1).upper(), [leading.group(2)]
    elif (only := only_value(candidates)) is not None and only in _named(text):
        letter, others = only, _LONE.sub("\n", text).split("\n")
    else:
        return None
    beside = {_with_words(words, options) for words in others if _words(words)}
    if beside == {letter}:
        return letter
    return None if beside - {None, letter} or _is_denied(text) else letter


def _is_denied(text: str) -> bool:
    """Return whether the text says of a letter that it is not the answer."""
    return any(
        _DENIAL.search(clause, 0, letter.start()) or _DENIED_AFTER.match(clause, letter.end())
        for clause in _CLAUSE_END.split(text)
        for letter in _letters(clause)
    )


def _letters(text: str) -> Iterator[re.Match[str]]:
    """Yield the capital letters that are words of their own, except "A" and "I" as words of a sentence."""
    for match in _LONE.finditer(text):
        if not (match.group(1) in "AI" and _ARTICLE.match(text, match.end())):
            yield match


def _candidates(text: str) -> set[str]:
    """Return the letters that may name an option."""
    capitals = {match.group(1) for match in _letters(text)}
    return capitals | {(match.group(1) or match.group(2)).upper() for match in _FURTHER.finditer(text)}


def _named(text: str) -> set[str]:
    """Return the letters that the text presents as an answer, and does not merely use ("vitamin C")."""
    patterns = (_CUE, _BRACKETED, _AFTER_COLON) if len(set(text.split())) > 1 else (_LONE,)
    return {match.group(1) for pattern in patterns for match in pattern.finditer(text)}


def _with_words(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the only option whose words `text` consists of; None if there is none."""
    wanted = {_words(text), _words(_INTRODUCED.sub("", text, count=1))} - {""}
    return only_value(letter for letter, words in options.items() if words in wanted)


def _words(text: str) -> str:
    return " ".join(text.casefold().split()).lstrip(" ,:([{").rstrip(" .!,;:。([{)]}")
