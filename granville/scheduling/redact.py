"""Personal data out of a text: what a model sees that only has to judge how urgent the text is.

Rather too much than too little is taken: an order number that looks like a telephone number is lost to the model, which
costs nothing. Checks are by the formats' own rules: Luhn (ISO/IEC 7812-1) for cards, mod 97 (ISO 13616) for IBANs,
`ipaddress` for addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

Span = tuple[int, int, str]
"""Where it begins, where it ends, and the label that takes its place."""

MARGIN_CHARS = 256
"""Looked at beyond an excerpt's edge, so that what lies across the edge is known for what it is."""
MAX_PASSES = 4
"""A label in a neighbour's place may lay open what had hidden behind it."""

CARD_DIGITS = range(13, 20)
PHONE_DIGITS = range(7, 16)
IBAN_CHARS = range(15, 35)

_EMAIL = re.compile(r"[\w.+%'-]+@(?:[^\W_][\w-]*\.)+[^\W\d_]{2,}", re.ASCII)
_URL_PASSWORD = re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_TOKEN = re.compile(
    r"(?:sk|pk|rk)[-_][A-Za-z0-9_-]{8,}"  # OpenAI, Anthropic, Stripe
    r"|gh[opsur]_[A-Za-z0-9]{10,}|github_pat_\w{10,}|glpat-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{12,}|AIza[\w-]{20,}|xox[a-z]-[\w-]{8,}|hf_[A-Za-z0-9]{10,}|npm_[A-Za-z0-9]{10,}"
    r"|eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?",  # a JSON Web Token
    re.ASCII,
)
_BEARER = re.compile(r"(?i:\bbearer)\s+([^\s\[\],;]{6,})")
_NAMED = re.compile(
    r"(?i:pass(?:word|wd|phrase|code)?|pwd|secret|token|api[ _-]?key|access[ _-]?key|\bpin)"
    r"[\"']?\s*(?:(?:=|:)\s*[\"']?([^\s\"'\[\],;]+)|(?i:is|was)\s+[\"']?(?=[^\s]*[\d!#$%&*+@^~])([^\s\"'\[\],;]+))"
)
_LONG = re.compile(r"[A-Za-z0-9+/_=-]{20,}")
_IBAN = re.compile(r"(?=([A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,40}))", re.ASCII)
_DIGITS = re.compile(r"\d(?:[ .-]?\d){12,}")
_PHONE = re.compile(r"(?<![\w.])(?:\+|\(\+?)?\d(?:[ ().\-/]{0,2}\d){6,}(?!\w)")
_DATE = re.compile(r"\d{4}[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./]\d{4}")
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")


def redact(text: str) -> str:
    """The text with a label such as `[email]` for each of what may name, reach or open the account of a person."""
    for _ in range(MAX_PASSES):
        redacted = _replace(text, 0, len(text), _spans(text))
        if redacted == text:
            break
        text = redacted
    return text


def excerpt(text: str, head_chars: int, tail_chars: int) -> str:
    """The text redacted, and cut to its head and tail when it is longer than both together. Takes no longer for a
    longer text."""
    if len(text) <= head_chars + tail_chars:
        return redact(text)
    before = text[: head_chars + MARGIN_CHARS]
    after = text[max(0, len(text) - tail_chars - MARGIN_CHARS) :]
    head = _replace(before, 0, head_chars, _spans(before))
    tail = _replace(after, len(after) - tail_chars, len(after), _spans(after)) if tail_chars else ""
    return redact(f"{head} … {tail}" if tail else f"{head} …")


def _replace(text: str, start: int, end: int, spans: list[Span]) -> str:
    """From `start` to `end`, with a label for each span that lies in it or across an edge of it."""
    parts, at = [], start
    for begins, ends, label in spans:
        if ends <= at or begins >= end:
            continue
        parts += [text[at:begins], label]
        at = ends
    parts.append(text[at:end])
    return "".join(parts)


def _spans(text: str) -> list[Span]:
    """In order, and none across another: of two that overlap one is made, with the label of what was found first."""
    found = sorted(
        ((start, end, rank, label) for rank, find in enumerate(_FINDERS) for start, end, label in find(text)),
        key=lambda span: (span[0], span[2]),
    )
    merged: list[tuple[int, int, int, str]] = []
    for start, end, rank, label in found:
        if merged and start < merged[-1][1]:
            first = merged[-1]
            best = min((first[2], first[3]), (rank, label))
            merged[-1] = (first[0], max(first[1], end), *best)
        else:
            merged.append((start, end, rank, label))
    return [(start, end, label) for start, end, _, label in merged]


def _matches(pattern: re.Pattern[str], label: str) -> Callable[[str], Iterator[Span]]:
    """The pattern's groups if it has some, otherwise all of it."""

    def find(text: str) -> Iterator[Span]:
        for match in pattern.finditer(text):
            group = match.lastindex or 0
            yield match.start(group), match.end(group), label

    return find


def _secrets(text: str) -> Iterator[Span]:
    """Long runs that are no word: hexadecimal from 32 characters on, otherwise letters and digits mixed."""
    for match in _LONG.finditer(text):
        run = match[0]
        is_hex = len(run) >= 32 and not run.strip("0123456789abcdefABCDEF-")
        if is_hex or (any(map(str.isdigit, run)) and any(map(str.isupper, run)) and any(map(str.islower, run))):
            yield match.start(), match.end(), "[secret]"


def _ibans(text: str) -> Iterator[Span]:
    """By the longest beginning that has the right remainder: the next word may look like a part of it."""
    for match in _IBAN.finditer(text):
        candidate = match[1]
        for end in range(len(candidate), 0, -1):
            if candidate[end - 1].isalnum() and _is_iban(candidate[:end]):
                yield match.start(1), match.start(1) + end, "[iban]"
                break


def _cards(text: str) -> Iterator[Span]:
    """A whole run of digits when some 13 to 19 of them in a row are a card's."""
    for match in _DIGITS.finditer(text):
        digits = [int(character) for character in match[0] if character.isdigit()]
        windows = (digits[at : at + size] for size in CARD_DIGITS for at in range(min(len(digits), 64) - size + 1))
        if len(digits) > 64 or any(map(_is_luhn, windows)):
            yield match.start(), match.end(), "[card]"


def _addresses(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            candidate = match[0].rstrip(".") if pattern is _IPV4 else match[0].rstrip(".:")
            candidate += "::" if match[0].rstrip(".").endswith("::") and pattern is _IPV6 else ""
            try:
                ipaddress.ip_address(candidate)
            except ValueError:
                continue
            if any(map(str.isalnum, candidate)):
                yield match.start(), match.start() + len(candidate), "[ip]"


def _phones(text: str) -> Iterator[Span]:
    for match in _PHONE.finditer(text):
        number = match[0]
        count = sum(map(str.isdigit, number))
        dialled = number[0] in "+(" or number.startswith("0")
        if count in PHONE_DIGITS and (dialled or count >= 9) and not _DATE.match(number):
            yield match.start(), match.end(), "[phone]"


_FINDERS: tuple[Callable[[str], Iterator[Span]], ...] = (
    _matches(_PRIVATE_KEY, "[secret]"),
    _matches(_TOKEN, "[secret]"),
    _matches(_BEARER, "[secret]"),
    _matches(_NAMED, "[secret]"),
    _matches(_URL_PASSWORD, "[secret]"),
    _secrets,
    _matches(_EMAIL, "[email]"),
    _ibans,
    _cards,
    _addresses,
    _phones,
)


def _is_luhn(digits: list[int]) -> bool:
    """Every second digit from the right doubled, its own digits added: the sum is a multiple of ten."""
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits)


def _is_iban(text: str) -> bool:
    """The first four characters moved to the end, letters as 10 to 35: the number leaves 1 when divided by 97."""
    characters = [character for character in text if character.isalnum()]
    if len(characters) not in IBAN_CHARS:
        return False
    return int("".join(str(int(character, 36)) for character in characters[4:] + characters[:4])) % 97 == 1
