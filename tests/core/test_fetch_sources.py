"""What a person may write as a source, and where its file goes."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from granville.errors import StartupError
from granville.fetch.sources import HttpSource, PypiSource, parse_source

DIGEST = "ab" * 32


def test_https_takes_its_hash_from_the_fragment_or_beside_it() -> None:
    expected = HttpSource("https://host/a/model.gguf?key=1", DIGEST)
    assert parse_source(f"https://host/a/model.gguf?key=1#sha256={DIGEST.upper()}") == expected
    assert parse_source("https://host/a/model.gguf?key=1", DIGEST) == expected
    assert parse_source(f"https://host/a/model.gguf?key=1#sha256={DIGEST}", DIGEST) == expected


def test_pypi() -> None:
    source = parse_source("pypi://some-package==1.0.post1/folder/model.Q4_1.gguf")
    assert source == PypiSource("some-package", "1.0.post1", "folder/model.Q4_1.gguf")
    assert source.place == PurePosixPath("some-package-1.0.post1/model.Q4_1.gguf")


def test_two_files_of_one_name_do_not_meet() -> None:
    one = parse_source("https://host/a/model.gguf", DIGEST).place
    other = parse_source("https://host/b/model.gguf", "cd" * 32).place
    assert one.name == other.name == "model.gguf"
    assert one != other


@pytest.mark.parametrize(
    ("text", "sha256", "says"),
    [
        ("https://host/model.gguf", None, "needs its SHA-256"),
        ("https://host/model.gguf#sha256=abc", None, "64 hexadecimal digits"),
        ("https://host/model.gguf#md5=abc", None, "expected #sha256=HEX"),
        (f"https://host/model.gguf#sha256={DIGEST}", "cd" * 32, "two different hashes"),
        ("https:///model.gguf", DIGEST, "not a URL"),
        ("https://host/", DIGEST, "file name"),
        ("https://host/..", DIGEST, "file name"),
        ("https://host/%2e%2e%2f.bashrc", DIGEST, "file name"),
        ("https://host/.hidden", DIGEST, "file name"),
        ("https://[::1/model.gguf", DIGEST, "not a URL"),
        ("ftp://host/model.gguf", DIGEST, "cannot fetch from ftp://"),
        ("pypi://package/model.gguf", None, "pypi://package==version/path"),
        ("pypi://package==1.0", None, "pypi://package==version/path"),
        ("pypi://--index-url==1/x", None, "pypi://package==version/path"),
        ("pypi://package==-r/x", None, "pypi://package==version/path"),
        ("pypi://package==1.0/folder/..", None, "file name"),
    ],
)
def test_what_cannot_be_a_source_is_said(text: str, sha256: str | None, says: str) -> None:
    with pytest.raises(StartupError, match=says):
        parse_source(text, sha256)
