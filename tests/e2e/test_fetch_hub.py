"""Files from a hub, for which two servers on loopback stand: the hub itself, and the one that has the bytes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trio

from granville.errors import StartupError
from granville.fetch import sources
from granville.fetch.hub import HubSource
from granville.fetch.sources import HttpSource, Mirrors, fetch
from granville.fetch.verify import remembered
from tests.e2e.site import DATA, Site, serving

DIGEST = hashlib.sha256(DATA).hexdigest()
BLOB = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA, usedforsecurity=False).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_hunter2"
SOURCE = HubSource("owner/repo", "model.gguf")


@dataclass
class Hub:
    """Answers as the hub does: HEAD tells of a file, GET sends on to the bytes, or sends a small file itself."""

    front: Site
    bytes_at: Site
    large: bool = True
    """Kept outside of git: the hash is a SHA-256, and the bytes are elsewhere."""
    etag: str = DIGEST
    size: int = len(DATA)
    gated: bool = False
    moved: bool = False
    """The repository has another name by now."""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    paths: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.paths.append((request.command, request.path))
        _, owner, repo, _, revision, file = request.path.split("/", 5)
        status, code = self.refusals.get(file, (0, ""))
        if self.gated and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, code = 401, "GatedRepo"
        if status:
            self.front.status(status, X_Error_Code=code)(request)
        elif self.moved and owner == "owner":
            self.front.status(307, Location=f"/new/{repo}/resolve/{revision}/{file}")(request)
        elif self.large:
            self.front.status(
                302,
                Location=f"{self.bytes_at.url}?X-Signature=hunter3",
                X_Linked_ETag=f'"{self.etag}"',
                X_Linked_Size=str(self.size),
                X_Repo_Commit=COMMIT,
                ETag='"of the redirect"',
            )(request)
        else:
            self.front.extra = {"ETag": f'W/"{self.etag}"', "X-Repo-Commit": COMMIT}
            self.front.serve(request)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Site()) as front, serving(Site()) as bytes_at:
        made = Hub(front, bytes_at)
        monkeypatch.setattr(front, "answer", _noting(made))
        monkeypatch.setenv("HF_ENDPOINT", front.url.partition("/files")[0])
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield made


def _noting(hub: Hub):  # type: ignore[no-untyped-def]
    def answer(request: BaseHTTPRequestHandler) -> None:
        hub.front.headers.append({name.lower(): value for name, value in request.headers.items()})
        hub.answer(request)

    return answer


async def get(folder: Path, source: sources.Source = SOURCE) -> Path:
    destination = folder / "store" / "model.gguf"
    with trio.fail_after(60):
        await fetch(source, destination)
    return destination


def _read(path: Path) -> bytes:
    return path.read_bytes()


async def test_the_hub_says_the_hash_and_another_host_has_the_bytes(hub: Hub, tmp_path: Path) -> None:
    path = await get(tmp_path)
    assert _read(path) == DATA
    assert hub.paths == [
        ("HEAD", "/owner/repo/resolve/main/model.gguf"),
        ("GET", f"/owner/repo/resolve/{COMMIT}/model.gguf"),  # the very version whose hash was told
    ]
    kept = remembered(path)
    assert kept is not None
    assert (kept.sha256, kept.source) == (DIGEST, f"hf://owner/repo/model.gguf@{COMMIT}")
    await get(tmp_path)
    assert len(hub.paths) == 2  # it is here: nobody is asked


async def test_a_small_file_is_held_against_gits_own_name_of_it(hub: Hub, tmp_path: Path) -> None:
    hub.large, hub.etag = False, BLOB
    path = await get(tmp_path)
    assert _read(path) == DATA
    kept = remembered(path)
    assert kept is not None
    assert kept.sha256 == DIGEST


async def test_wrong_bytes_of_a_small_file(hub: Hub, tmp_path: Path) -> None:
    hub.large, hub.etag = False, BLOB[::-1]
    with pytest.raises(StartupError, match="expected the git blob"):
        await get(tmp_path)
    assert not (tmp_path / "store").exists()


async def test_wrong_bytes_of_a_large_file(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_at.data = DATA[:-1] + b"!"
    with pytest.raises(StartupError, match="expected SHA-256"):
        await get(tmp_path)
    assert not (tmp_path / "store").exists()


async def test_a_download_from_the_hub_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_at.plan = [hub.bytes_at.cut_after(1_000_000)]
    assert _read(await get(tmp_path)) == DATA
    assert hub.bytes_at.ranges[1] is not None
    assert [method for method, _ in hub.paths] == ["HEAD", "GET", "GET"]  # each time with a signature of its own


async def test_a_repository_that_was_renamed(hub: Hub, tmp_path: Path) -> None:
    hub.moved = True
    assert _read(await get(tmp_path)) == DATA
    assert ("HEAD", "/new/repo/resolve/main/model.gguf") in hub.paths


async def test_the_token_goes_to_the_hub_alone_and_is_never_shown(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.bytes_at.plan = [hub.bytes_at.status(503, Retry_After="0"), hub.bytes_at.cut_after(1_000_000)]
    path = await get(tmp_path)
    assert _read(path) == DATA
    assert {asked.get("authorization") for asked in hub.front.headers} == {f"Bearer {TOKEN}"}
    assert len(hub.bytes_at.headers) == 3
    assert not [asked for asked in hub.bytes_at.headers if "authorization" in asked]
    ours = [record for record in caplog.records if record.name.startswith("granville")]
    assert ours
    assert not [record for record in ours if "hunter" in record.getMessage()]
    assert not [file for file in path.parent.iterdir() if b"hunter" in _read(file)]


@pytest.mark.parametrize(
    ("status", "code", "token", "says"),
    [
        (401, "GatedRepo", None, "access has to be asked for at .*/owner/repo; then set HF_TOKEN"),
        (403, "GatedRepo", TOKEN, "the account of your token has no access"),
        (401, "RepoNotFound", None, "no such repository, or it is private: then set HF_TOKEN"),
        (401, "", TOKEN, r"the token in HF_TOKEN is not \(or no longer\) valid"),
        (403, "", None, "access has to be asked for"),
        (404, "EntryNotFound", None, "owner/repo has no file model.gguf in main; .*/tree/main shows"),
        (404, "RevisionNotFound", None, "no branch, tag or commit main"),
        (404, "RepoNotFound", TOKEN, "there is no repository owner/repo"),
        (404, "", None, "there is no such file"),
        (410, "", None, "answered 410"),
    ],
)
async def test_a_refusal_says_what_to_do(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    token: str | None,
    says: str,
) -> None:
    hub.refusals = {"model.gguf": (status, code)}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(StartupError, match=says) as raised:
        await get(tmp_path)
    assert "hunter" not in raised.value.message
    assert len(hub.paths) == 1  # not asked again


async def test_a_hub_that_is_busy_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    real, busy = hub.answer, [503, 429]

    def answer(request: BaseHTTPRequestHandler) -> None:
        hub.front.status(busy.pop(), Retry_After="0")(request) if busy else real(request)

    hub.answer = answer  # type: ignore[method-assign]
    assert _read(await get(tmp_path)) == DATA


async def test_a_hub_that_says_no_hash(hub: Hub, tmp_path: Path) -> None:
    hub.etag = "some-other-tag"
    with pytest.raises(StartupError, match="does not say its hash; add #sha256=HEX"):
        await get(tmp_path)
    assert _read(await get(tmp_path, HubSource("owner/repo", "model.gguf", sha256=DIGEST))) == DATA


async def test_a_hash_that_was_given_must_be_the_hubs(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"the hub has the SHA-256 {DIGEST}, not 0000"):
        await get(tmp_path, HubSource("owner/repo", "model.gguf", sha256="0" * 64))
    with pytest.raises(StartupError, match="the hub has 3000008 bytes, 7 were expected"):
        await get(tmp_path, HubSource("owner/repo", "model.gguf", sha256=DIGEST, size=7))
    assert [method for method, _ in hub.paths] == ["HEAD", "HEAD"]


async def test_mirrors_are_tried_in_turn_and_go_on_with_one_part(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first has another file, the second ends half-way and is gone, the third is the hub."""
    with serving(Site()) as wrong, serving(Site()) as broken:
        wrong.data = b"GGUF\x03\0\0\0 another"
        broken.plan = [broken.cut_after(1_000_000), *[broken.status(404)] * 9]
        mirrors = Mirrors(
            (
                HttpSource(wrong.url, DIGEST, len(DATA)),
                HttpSource(broken.url, DIGEST, len(DATA)),
                HubSource("owner/repo", "model.gguf", sha256=DIGEST, size=len(DATA)),
            )
        )
        assert _read(await get(tmp_path, mirrors)) == DATA
    assert hub.bytes_at.ranges[0] is not None
    assert "were expected; trying the next source" in caplog.text
    assert "answered 404" in caplog.text


async def test_when_no_mirror_has_it_all_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Site()) as one, serving(Site()) as other:
        one.plan, other.plan = [one.status(404)], [other.status(403)]
        mirrors = Mirrors((HttpSource(one.url, DIGEST), HttpSource(other.url, DIGEST)))
        with pytest.raises(StartupError, match=r"none of 2 sources has it: .*404.*403"):
            await get(tmp_path, mirrors)


async def test_a_full_disk_is_not_the_sources_fault(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from granville.fetch import place

    monkeypatch.setattr(place, "FREE_MARGIN_BYTES", 1 << 60)
    with pytest.raises(StartupError, match="make room"):
        await get(tmp_path, Mirrors((HttpSource(hub.bytes_at.url, DIGEST), SOURCE)))
    assert hub.paths == []
