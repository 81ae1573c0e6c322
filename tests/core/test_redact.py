"""What names, reaches or opens the account of a person does not come out of redaction."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.scheduling.redact import excerpt, redact

LETTERS = string.ascii_letters
ALNUM = string.ascii_letters + string.digits

around = st.sampled_from(["", " ", "\n", "(", "<", '"', "call ", "Karte: ", "to=", "你好 ", "😀", "x, "])
after = st.sampled_from(["", " ", "\n", ")", ">", '"', ". ", ", please", " 你好", "; and", " - 3 items"])


@st.composite
def emails(draw: st.DrawFn) -> str:
    local = draw(st.text(ALNUM + "._+-", min_size=1, max_size=12).filter(lambda s: s[0] in ALNUM))
    host = draw(st.lists(st.text(ALNUM, min_size=1, max_size=8), min_size=1, max_size=3))
    return f"{local}@{'.'.join(host)}.{draw(st.text(LETTERS, min_size=2, max_size=5))}"


@st.composite
def cards(draw: st.DrawFn) -> str:
    digits = draw(st.lists(st.integers(0, 9), min_size=12, max_size=18).filter(any))
    total = sum(sum(divmod(2 * d, 10)) if n % 2 == 0 else d for n, d in enumerate(reversed(digits)))
    digits.append(-total % 10)
    gap = draw(st.sampled_from(["", " ", "-"]))
    text = "".join(map(str, digits))
    return gap.join(text[n : n + 4] for n in range(0, len(text), 4))


@st.composite
def ibans(draw: st.DrawFn) -> str:
    country = draw(st.text(string.ascii_uppercase, min_size=2, max_size=2))
    body = draw(st.text(string.digits + string.ascii_uppercase, min_size=11, max_size=30))
    number = int("".join(str(int(character, 36)) for character in f"{body}{country}00"))
    text = f"{country}{98 - number % 97:02}{body}"
    gap = draw(st.sampled_from(["", " "]))
    return gap.join(text[n : n + 4] for n in range(0, len(text), 4))


@st.composite
def keys(draw: st.DrawFn) -> str:
    prefix = draw(st.sampled_from(["sk-", "sk_live_", "ghp_", "github_pat_", "AKIA", "xoxb-", "hf_", "AIza"]))
    letters = string.ascii_uppercase + string.digits if prefix == "AKIA" else ALNUM
    return prefix + draw(st.text(letters, min_size=24, max_size=40))


phones = st.from_regex(
    r"(\+[1-9][0-9]{0,2}[ -]?|\(0[0-9]{2,4}\) |0[0-9]{2,4}[ /-])[0-9]{3}[ -]?[0-9]{4}", fullmatch=True
)
addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).filter(lambda a: a != ipaddress.IPv6Address(0)).map(
    str
)


@given(before=around, secret=emails() | cards() | ibans() | keys() | phones | addresses, behind=after)
def test_nothing_personal_survives(before: str, secret: str, behind: str) -> None:
    redacted = redact(before + secret + behind)
    assert secret not in redacted
    assert "[" in redacted
    assert redact(redacted) == redacted


@given(secrets=st.lists(emails() | cards() | ibans() | keys() | phones | addresses, max_size=4), words=st.text())
def test_several_in_one_text(secrets: list[str], words: str) -> None:
    redacted = redact(f"{words}\n" + " and ".join(secrets))
    assert not any(secret in redacted for secret in secrets)


@given(st.text(max_size=300))
def test_any_text_is_redacted_once_and_for_all(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@given(
    secret=emails() | cards() | ibans() | keys(),
    position=st.integers(0, 260),
    head=st.integers(1, 120),
    tail=st.integers(0, 120),
)
def test_what_lies_across_the_edge_of_an_excerpt_goes_as_a_whole(
    secret: str, position: int, head: int, tail: int
) -> None:
    filler = "word " * 60
    text = f"{filler[:position]} {secret} {filler[position:]}"
    shown = excerpt(text, head, tail)
    assert len(shown) <= head + tail + 3 + 2 * len("[secret]")
    for size in range(6, len(secret) + 1):  # neither all of it nor a part that tells something
        for start in range(len(secret) - size + 1):
            assert secret[start : start + size] not in shown


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail bob.smith@example.co.uk now", "mail [email] now"),
        ("call +44 20 7946 0958 or (030) 123 4567", "call [phone] or [phone]"),
        ("4111 1111 1111 1111, exp 12/26", "[card], exp 12/26"),
        ("IBAN DE89 3704 0044 0532 0130 00 AND MORE", "IBAN [iban] AND MORE"),
        ("from 192.168.1.20 to fe80::1", "from [ip] to [ip]"),
        ("password: hunter2", "password: [secret]"),
        ("my password is hunter2!", "my password is [secret]"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer [secret]"),
        ("postgres://bob:pw@host/db", "postgres://[secret]@host/db"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "[secret]"),
        ("sum deadbeefdeadbeefdeadbeefdeadbeef", "sum [secret]"),
    ],
)
def test_what_takes_its_place(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "my password is expired",
        "due on 2026-11-24 at 16:00, or 24.11.2026",
        "order 4711, 12,000 images, 100.000,00 a minute, 3.14159",
        "version 1.2.3, room 12, 12:30:45, ports 8080 9090",
        "std::vector, C:\\temp, http://host/path?x=1",
        "internationalisation-of-everything is long",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_a_long_text_takes_no_longer_than_its_excerpt() -> None:
    shown = excerpt("a@" * 500_000 + "the end", 100, 20)
    assert shown.endswith("the end")
    assert len(shown) <= 123
