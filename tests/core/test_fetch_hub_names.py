"""How a file on the hub is named, where the hub is, and what may be sent to it."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from granville.errors import StartupError
from granville.fetch.hub import HubSource, endpoint, is_safe_for_token, resolve_url, token
from granville.fetch.sources import FileSource, HttpSource, parse_source

DIGEST = "ab" * 32
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://owner/repo/m.gguf", HubSource("owner/repo", "m.gguf")),
        ("HF://owner/repo/m.gguf", HubSource("owner/repo", "m.gguf")),
        ("huggingface://owner/repo/sub/m.gguf", HubSource("owner/repo", "sub/m.gguf")),
        ("hf://owner/repo/m.gguf@v1.0", HubSource("owner/repo", "m.gguf", "v1.0")),
        (f"hf://owner/repo/m.gguf@{COMMIT}", HubSource("owner/repo", "m.gguf", COMMIT)),
        ("hf://owner/repo/m.gguf@refs/pr/1", HubSource("owner/repo", "m.gguf", "refs/pr/1")),
        ("hf://owner/repo@v1.0/sub/m.gguf", HubSource("owner/repo", "sub/m.gguf", "v1.0")),
        ("hf://owner/repo@refs%2Fpr%2F1/m.gguf", HubSource("owner/repo", "m.gguf", "refs/pr/1")),
        (f"hf://owner/repo/m.gguf#sha256={DIGEST}", HubSource("owner/repo", "m.gguf", sha256=DIGEST)),
        ("https://huggingface.co/owner/repo/resolve/main/m.gguf", HubSource("owner/repo", "m.gguf")),
        ("https://huggingface.co/owner/repo/blob/main/a/m.gguf?download=true", HubSource("owner/repo", "a/m.gguf")),
        ("https://hf.co/owner/repo/resolve/v2/m.gguf", HubSource("owner/repo", "m.gguf", "v2")),
        ("https://huggingface.co/owner/repo/blob/refs%2Fpr%2F1/m.gguf", HubSource("owner/repo", "m.gguf", "refs/pr/1")),
    ],
)
def test_what_means_a_file_on_the_hub(text: str, source: HubSource) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/owner/resolve/main/m.gguf",
        "https://huggingface.co/owner/repo/raw/main/m.gguf",
        "https://huggingface.co.evil.example/owner/repo/resolve/main/m.gguf",
        "https://example.com/owner/repo/resolve/main/m.gguf",
    ],
)
def test_other_addresses_need_a_hash(text: str) -> None:
    with pytest.raises(StartupError, match="needs its SHA-256"):
        parse_source(text)
    assert parse_source(text, DIGEST) == HttpSource(text, DIGEST)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hf://owner/repo", "expected hf://owner/repo/path"),
        ("hf://owner/repo/", "expected hf://owner/repo/path"),
        ("hf://repo", "expected hf://owner/repo/path"),
        ("hf://../repo/m.gguf", "expected hf://owner/repo/path"),
        ("hf://owner/re po/m.gguf", "expected hf://owner/repo/path"),
        ("hf://owner/repo/../m.gguf", "cannot be a model's file name"),
        ("hf://owner/repo/a//m.gguf", "cannot be a model's file name"),
        ("hf://owner/repo/a%2F..%2F..%2Fm.gguf", "cannot be a model's file name"),
        ("hf://owner/repo/m.gguf.part", "cannot be a model's file name"),
        ("hf://owner/repo/m.gguf@../main", "cannot be a revision"),
        ("hf://owner/repo/m.gguf@a..b", "cannot be a revision"),
        ("hf://owner/repo/m.gguf@-rf", "cannot be a revision"),
        ("hf://owner/repo/m.gguf#md5=1", "expected #sha256=HEX"),
        ("file://host/m.gguf", "expected the whole path"),
        ("file:m.gguf", "expected the whole path"),
        ("file:///models/..", "cannot be a model's file name"),
        ("file:///a%00b.gguf", "expected the whole path"),
    ],
)
def test_what_cannot_be_a_source_is_said(text: str, says: str) -> None:
    with pytest.raises(StartupError, match=says):
        parse_source(text if "://" in text else f"file://{text.removeprefix('file:')}")


def test_a_place_is_one_of_repository_revision_and_path() -> None:
    def place(text: str) -> PurePosixPath:
        return parse_source(text).place

    assert place("hf://owner/repo/m.gguf") == PurePosixPath("owner--repo@main/m.gguf")
    assert place("hf://owner/repo/sub/m.gguf@refs/pr/1") == PurePosixPath("owner--repo@refs--pr--1/sub/m.gguf")
    assert place("file:///a/m.gguf") != place("file:///b/m.gguf")
    assert place(f"file:///a/m.gguf#sha256={DIGEST}") == place(f"https://host/m.gguf#sha256={DIGEST}")


def test_file() -> None:
    assert parse_source("file:///a%20b/m.gguf") == FileSource("/a b/m.gguf")
    assert parse_source("file://localhost/a/m.gguf", DIGEST) == FileSource("/a/m.gguf", DIGEST)


def test_the_hub_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    source = HubSource("owner/repo", "a b/m.gguf", "refs/pr/1")
    assert resolve_url(source) == "https://huggingface.co/owner/repo/resolve/refs%2Fpr%2F1/a%20b/m.gguf"
    assert resolve_url(source, COMMIT) == f"https://huggingface.co/owner/repo/resolve/{COMMIT}/a%20b/m.gguf"
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/mirror/")
    assert endpoint() == "https://hub.example/mirror"
    assert parse_source("https://hub.example/mirror/owner/repo/resolve/main/m.gguf") == HubSource(
        "owner/repo", "m.gguf"
    )
    assert isinstance(parse_source("https://hub.example/other/o/r/resolve/main/m.gguf", DIGEST), HttpSource)


@pytest.mark.parametrize("text", ["hub.example", "ftp://hub.example", "https://", "https://user:pw@hub.example"])
def test_an_endpoint_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", text)
    with pytest.raises(StartupError, match="HF_ENDPOINT") as raised:
        endpoint()
    assert "pw" not in raised.value.message


def test_the_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token() is None
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_old\n")
    assert token() == "hf_old"
    monkeypatch.setenv("HF_TOKEN", "hf_new")
    assert token() == "hf_new"


@pytest.mark.parametrize("value", ["hf_sec ret", "hf_sec\r\nret: x", "hf_sécret"])
def test_a_token_that_cannot_be_sent_is_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", value)
    with pytest.raises(StartupError, match="HF_TOKEN") as raised:
        token()
    assert "hf_s" not in raised.value.message


@pytest.mark.parametrize(
    ("where", "safe"),
    [
        ("https://hub.example", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://hub.example", False),
        ("http://10.0.0.1", False),
    ],
)
def test_a_token_is_not_sent_in_the_clear(where: str, safe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", where)
    assert is_safe_for_token() is safe
