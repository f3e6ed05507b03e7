"""Where words begin and end: the word boundaries of Unicode Standard Annex #29, over text that may go on.

The default rules, untailored: no dictionaries and no language, so a text in Thai or Chinese falls into
characters. Properties come from the `regex` library; the rules are ours because that library's own `\\b`
departs from the annex around marks, quotes and flags (see docs/decisions). It knows characters, not tokens.

Text is read as classes, one letter a character:

    A letter (a: pictographic)   H Hebrew letter   0 digit   K katakana   _ connector
    M mid-letter   U mid-number   B mid both   Q '   D "
    X extend   F format   Z zero-width joiner   I regional indicator
    R CR   L LF   N newline   S space   T other white space   P pictographic   O anything else
"""

from __future__ import annotations

import functools

_CODES = {
    "CR": "R", "LF": "L", "Newline": "N", "Extend": "X", "ZWJ": "Z", "Format": "F", "Regional_Indicator": "I",
    "Katakana": "K", "Hebrew_Letter": "H", "ALetter": "A", "Single_Quote": "Q", "Double_Quote": "D",
    "MidNumLet": "B", "MidLetter": "M", "MidNum": "U", "Numeric": "0", "ExtendNumLet": "_", "WSegSpace": "S",
}  # fmt: skip
SPACES = frozenset("RLNST")
_IGNORED = frozenset("XFZ")
_LINES = frozenset("RLN")
_LETTERS = frozenset("AaH")
_PICTURES = frozenset("Pa")
_JOINED = frozenset("AaH0K_")

# What is known about a place in a text of which only the beginning is known.
NO, YES, UNSETTLED = 0, 1, 2


@functools.cache
def _patterns() -> tuple[list[tuple[str, object]], object]:
    import regex

    found = [(code, regex.compile(rf"\p{{Word_Break={name}}}")) for name, code in _CODES.items()]
    return found, regex.compile(r"\p{Extended_Pictographic}")


@functools.lru_cache(maxsize=1 << 16)
def _class(character: str) -> str:
    patterns, picture = _patterns()
    code = next((code for code, pattern in patterns if pattern.match(character)), "O")  # type: ignore[attr-defined]
    pictured = picture.match(character)  # type: ignore[attr-defined]
    if code == "O":
        return "P" if pictured else "T" if character.isspace() else "O"
    return "a" if code == "A" and pictured else code


def classes(text: str) -> str:
    """The class of every character, as a string of the same length."""
    return "".join(map(_class, text))


@functools.lru_cache(maxsize=1 << 16)
def statuses(known: str) -> tuple[int, ...]:
    """Whether a boundary stands before each character, given its class and its predecessors' and all that follow.

    `UNSETTLED` where the answer depends on text that is yet to come: "can'" is cut before the quote unless a
    letter follows. Everything else never changes, whatever comes after.
    """
    found: list[int] = []
    last = before = ""  # the last two classes that count, skipping marks
    flags = 0  # regional indicators in a row up to here
    for at, code in enumerate(known):
        found.append(_status(known, at, code, last, before, flags) if at else YES)
        if code in _IGNORED and at and known[at - 1] not in _LINES:
            continue  # a mark belongs to what it stands on
        before, last = last, code
        flags = flags + 1 if code == "I" else 0
    return tuple(found)


def _status(known: str, at: int, code: str, last: str, before: str, flags: int) -> int:
    """Rules WB3 to WB999 for the place before `known[at]`."""
    previous = known[at - 1]
    if previous in _LINES or code in _LINES:
        return NO if previous + code == "RL" else YES  # WB3, WB3a, WB3b
    if previous == "Z" and code in _PICTURES:
        return NO  # WB3c
    if previous == code == "S":
        return NO  # WB3d
    if code in _IGNORED:
        return NO  # WB4
    if code in _JOINED:
        letter, digit = code in _LETTERS, code == "0"
        if letter or digit:
            if last in _LETTERS or last == "0":
                return NO  # WB5, WB8, WB9, WB10
            if letter and before in _LETTERS and last in "MBQ":
                return NO  # WB7
            if code == before == "H" and last == "D":
                return NO  # WB7c
            if digit and before == "0" and last in "UBQ":
                return NO  # WB11
        if code == last == "K":
            return NO  # WB13
        if last == "_" or (code == "_" and last in _JOINED):
            return NO  # WB13a, WB13b
        return YES
    if code in "MBQDU":
        if last == "H" and code == "Q":
            return NO  # WB7a
        if last in _LETTERS and (code in "MBQ" or (last == "H" and code == "D")):
            wanted = "H" if code == "D" else "AaH"  # WB6, WB7b
        elif last == "0" and code in "UBQ":
            wanted = "0"  # WB12
        else:
            return YES
        follows = next((c for c in known[at + 1 :] if c not in _IGNORED), None)
        return UNSETTLED if follows is None else NO if follows in wanted else YES
    if code == last == "I":
        return NO if flags % 2 else YES  # WB15, WB16
    return YES


def boundaries(text: str) -> list[int]:
    """Every word boundary of a whole text, its two ends included; none in an empty one."""
    if not text:
        return []
    return [at for at, status in enumerate(statuses(classes(text))) if status != NO] + [len(text)]


def ends_in_word(text: str) -> bool:
    """Whether the text ends in a letter, digit or the like, so that what comes next could continue the word."""
    stripped = next((c for c in reversed(text) if _class(c) not in _IGNORED), "")
    return bool(stripped) and (_class(stripped) in _JOINED or stripped.isalnum())
