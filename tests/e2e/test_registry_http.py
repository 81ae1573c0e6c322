"""An index over HTTP: cached by ETag, stood in for by its last good copy, and nothing where its signature is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from granville.errors import StartupError
from granville.fetch.web import Limits
from granville.registry import remote
from granville.registry.remote import Copy, Loaded, load
from granville.registry.settings import Registry
from granville.registry.signing import BadSignature, Signer, make_key, parse_public_key
from tests.e2e.index_site import IndexSite, serving

INDEX = b'{"version": 1, "drivers": {"acme-granville-a": {}}}'
OTHER = b'{"version": 1, "drivers": {"acme-granville-b": {}}}'


class World:
    def __init__(self, site: IndexSite, folder: Path) -> None:
        self.site = site
        self.cache = folder / "cache"
        self.signer: Signer = make_key(folder / "key")
        self.registry = Registry("acme", f"{site.url}registry.json")
        self.signed = replace(self.registry, key=parse_public_key(self.signer.public_key))
        self.now = 1_000_000.0

    def put(self, data: bytes, *, signature: bytes | None = None) -> None:
        (self.site.folder / "registry.json").write_bytes(data)
        (self.site.folder / "registry.json.sig").write_bytes(self.signer.sign(data) if signature is None else signature)

    def load(self, registry: Registry | None = None) -> Loaded:
        return trio.run(lambda: load(registry or self.registry, self.cache, lambda: self.now))

    def drivers(self, registry: Registry | None = None) -> list[str]:
        return list(self.load(registry).index.drivers)

    def copies(self) -> list[Path]:
        return list(self.cache.glob("*.copy"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(
        remote, "LIMITS", Limits(max_fruitless_attempts=2, first_backoff_s=0.001, max_backoff_s=0.002, connect_s=5)
    )
    with serving(IndexSite(tmp_path / "site")) as site:
        yield World(site, tmp_path)


def test_what_has_not_changed_is_not_sent_again(world: World) -> None:
    world.put(INDEX)
    assert world.drivers(world.signed) == ["acme-granville-a"]
    assert world.drivers(world.signed) == ["acme-granville-a"]
    world.put(OTHER)
    assert world.drivers(world.signed) == ["acme-granville-b"]
    assert world.site.answers == [
        ("/registry.json", 200),
        ("/registry.json.sig", 200),
        ("/registry.json", 304),
        ("/registry.json", 200),
        ("/registry.json.sig", 200),
    ]


def test_without_etags_it_is_sent_again(world: World) -> None:
    world.site.etags = False
    world.put(INDEX)
    assert world.drivers() == world.drivers() == ["acme-granville-a"]
    assert [status for _, status in world.site.answers] == [200, 200]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_is_stood_in_for_by_the_last_good_copy(world: World, status: int) -> None:
    world.put(INDEX)
    assert world.load(world.signed).note is None
    world.site.instead["/registry.json"] = (status, b"")
    world.now += 7300
    loaded = world.load(world.signed)
    assert list(loaded.index.drivers) == ["acme-granville-a"]
    assert loaded.note is not None
    assert f"answered {status}" in loaded.note
    assert loaded.note.endswith("; the copy of 2 hours ago is used in its place")


def test_a_network_that_is_away(tmp_path: Path, world: World) -> None:
    site = IndexSite(tmp_path / "away")
    with serving(site):
        there = World(site, tmp_path / "away")
        there.put(INDEX)
        assert there.drivers() == ["acme-granville-a"]
    note = there.load().note
    assert note is not None
    assert note.startswith(f"registry acme ({site.url}registry.json) cannot be reached: ")
    fresh = replace(there.registry, location=f"{site.url}other.json")
    with pytest.raises(StartupError, match=r"other\.json: "):
        there.load(fresh)


def test_no_copy_and_no_server_is_an_error_after_some_tries(world: World) -> None:
    world.site.instead["/registry.json"] = (503, b"")
    with pytest.raises(StartupError, match="answered 503"):
        world.load()
    assert len(world.site.answers) == 2


@pytest.mark.parametrize("status", [404, 410, 403, 401])
def test_an_index_that_is_gone_is_an_error_and_not_a_network_s(world: World, status: int) -> None:
    world.put(INDEX)
    world.load()
    world.site.instead["/registry.json"] = (status, b"")
    with pytest.raises(StartupError, match=f"answered {status}"):
        world.load()


def test_a_page_that_asks_to_log_in_is_no_index(world: World) -> None:
    world.put(INDEX)
    world.load()
    world.site.instead["/registry.json"] = (200, b"<html>Welcome to the hotel")
    loaded = world.load()
    assert list(loaded.index.drivers) == ["acme-granville-a"]
    assert loaded.note is not None
    assert loaded.note.startswith("the index is broken")
    # It did not become the copy, and to those with a key it is a forgery.
    assert world.load().note
    with pytest.raises(BadSignature):
        world.load(world.signed)


FORGERIES: dict[str, Callable[[World], None]] = {
    "changed": lambda world: world.put(OTHER, signature=world.signer.sign(INDEX)),
    "by another": lambda world: world.put(OTHER, signature=make_key(world.cache.parent / "evil").sign(OTHER)),
    "unsigned": lambda world: world.put(OTHER, signature=b"unsigned"),
    "empty": lambda world: world.put(OTHER, signature=b""),
    "a space more": lambda world: world.put(OTHER + b" ", signature=world.signer.sign(OTHER)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_signature_that_fails_leaves_nothing_not_even_the_copy(world: World, forgery: str) -> None:
    world.put(INDEX)
    assert world.drivers(world.signed) == ["acme-granville-a"]
    kept = world.copies()[0].read_bytes()
    FORGERIES[forgery](world)
    if forgery == "unsigned":
        (world.site.folder / "registry.json.sig").unlink()
    with pytest.raises(BadSignature, match=r"nothing is installed from it|not a signature"):
        world.load(world.signed)
    assert world.copies()[0].read_bytes() == kept  # a forgery did not become what is fallen back on
    world.put(OTHER)
    assert world.drivers(world.signed) == ["acme-granville-b"]


def test_an_index_that_is_replaced_between_two_requests_is_asked_for_again(world: World) -> None:
    world.put(INDEX)
    new = world.signer.sign(OTHER)
    calls = 0
    answer = world.site._found

    def publishes_meanwhile(path: str) -> tuple[int, bytes, str | None]:
        nonlocal calls
        calls += 1
        found = answer(path)
        if calls == 1:
            world.put(OTHER, signature=new)
        return found

    world.site._found = publishes_meanwhile  # type: ignore[method-assign]
    assert world.drivers(world.signed) == ["acme-granville-b"]


def test_a_copy_that_was_tampered_with_is_not_used(world: World) -> None:
    world.put(INDEX)
    world.load(world.signed)
    (path,) = world.copies()
    copy = msgspec.msgpack.decode(path.read_bytes(), type=Copy)
    forged = msgspec.msgpack.encode(msgspec.structs.replace(copy, data=OTHER))
    path.write_bytes(forged)
    world.site.instead["/registry.json"] = (503, b"")
    with pytest.raises(StartupError, match="answered 503"):
        world.load(world.signed)
    del world.site.instead["/registry.json"]
    path.write_bytes(forged)
    assert world.drivers(world.signed) == ["acme-granville-a"]


def test_a_key_that_came_later_is_held_against_the_copy(world: World) -> None:
    world.put(INDEX)
    world.load()
    world.site.answers.clear()
    assert world.drivers(world.signed) == ["acme-granville-a"]
    assert world.site.answers == [("/registry.json", 200), ("/registry.json.sig", 200)]


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", msgspec.msgpack.encode({"url": 1})])
def test_a_copy_that_cannot_be_read_is_as_good_as_none(world: World, rubbish: bytes) -> None:
    world.put(INDEX)
    world.load()
    (path,) = world.copies()
    path.write_bytes(rubbish)
    assert world.drivers() == ["acme-granville-a"]
    assert msgspec.msgpack.decode(path.read_bytes(), type=Copy).data == INDEX


def test_a_home_that_cannot_be_written_costs_the_copy_alone(world: World) -> None:
    world.put(INDEX)
    world.cache.write_text("a file")
    assert world.drivers() == ["acme-granville-a"]


def test_an_index_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_INDEX_BYTES", 10)
    world.put(INDEX)
    with pytest.raises(StartupError, match="sent more than 10 bytes"):
        world.load()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://example.invalid/registry.json"])
def test_redirects_to_where_an_index_may_not_be(world: World, target: str) -> None:
    world.site.instead["/registry.json"] = (302, target.encode())
    with pytest.raises(StartupError):
        world.load()


def test_an_index_in_a_file_is_verified_too(world: World, tmp_path: Path) -> None:
    world.put(INDEX)
    there = replace(world.signed, location=world.site.folder / "registry.json")
    assert world.drivers(there) == ["acme-granville-a"]
    world.put(OTHER, signature=world.signer.sign(INDEX))
    with pytest.raises(BadSignature):
        world.load(there)
    (world.site.folder / "registry.json.sig").unlink()
    with pytest.raises(BadSignature, match="there is no"):
        world.load(there)
    with pytest.raises(StartupError, match=r"none\.json: cannot be read"):
        world.load(replace(there, location=tmp_path / "none.json"))


def test_the_bytes_of_a_copy_are_those_that_were_signed(world: World) -> None:
    spaced = json.dumps(json.loads(INDEX), indent=7).encode()
    world.put(spaced)
    world.load(world.signed)
    assert msgspec.msgpack.decode(world.copies()[0].read_bytes(), type=Copy).data == spaced
