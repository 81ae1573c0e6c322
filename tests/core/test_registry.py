"""Whose a name is, which build is taken, what signs an index, and which registries are asked."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from granville.errors import StartupError
from granville.fetch.place import replace_file
from granville.registry.index import Owned, choose, compare, find_owner, in_order, newest
from granville.registry.remote import Loaded, ago
from granville.registry.schema import Artifact, DriverEntry, Index, Version
from granville.registry.settings import THE_EMBEDDED, Registry, configured, parse_location, registries
from granville.registry.signing import BadSignature, Signer, make_key, parse_public_key, verify
from granville.registry.wanted import ByName, ByPath, ByUrl, parse_wanted

DIGEST = "ab" * 32
NAME = "acme-granville-tpu"


def artifact(url: str = "a.tar.gz") -> Artifact:
    return Artifact(url=url, sha256=DIGEST, size_bytes=10)


def entry(latest: str, **versions: list[str]) -> DriverEntry:
    """`v1_0=["linux-x86_64"]` is a version 1.0 with that build."""
    return DriverEntry(
        latest_version=latest,
        versions={
            name[1:].replace("_", "."): Version(artifacts={platform: artifact() for platform in platforms})
            for name, platforms in versions.items()
        },
    )


def registry(name: str, *, official: bool = False, location: str = "https://acme.example/registry.json") -> Registry:
    return Registry(name, location, official=official)


class World:
    """Registries by name, each with its drivers or with an error."""

    def __init__(self, **indexes: dict[str, DriverEntry] | StartupError) -> None:
        self.indexes = indexes
        self.asked: list[str] = []
        self.said: list[str] = []

    async def load(self, registry: Registry) -> Loaded:
        self.asked.append(registry.name)
        found = self.indexes[registry.name]
        if isinstance(found, StartupError):
            raise found
        return Loaded(registry, Index(version=1, drivers=found))

    def owner(self, name: str, *registries: Registry) -> Owned:
        return trio.run(lambda: find_owner(name, registries, self.load, self.said.append))


def test_a_name_belongs_to_the_first_registry_that_has_it_and_to_no_other() -> None:
    world = World(empty={}, first={NAME: entry("1.0", v1_0=["any"])}, second={NAME: entry("99.0", v99_0=["any"])})
    owned = world.owner(NAME, registry("empty"), registry("first"), registry("second"))
    assert owned.registry.name == "first"
    assert world.asked == ["empty", "first"]
    with pytest.raises(StartupError, match=r"belongs to registry first .*no version 99\.0; it has 1\.0\. Other"):
        choose(owned, "99.0", "linux-x86_64")


def test_an_official_name_counts_only_where_the_registry_is_marked() -> None:
    """A registry cannot take a name from the official ones by being asked before them."""
    impostor = {"granville-whisper": entry("99.0", v99_0=["any"])}
    world = World(acme=impostor, official={"granville-whisper": entry("1.0", v1_0=["any"])})
    owned = world.owner("granville-whisper", registry("acme"), registry("official", official=True))
    assert owned.registry.name == "official"
    with pytest.raises(StartupError, match=r"official driver, and registry acme .* is not marked official"):
        world.owner("granville-whisper", registry("acme"))
    trusted = world.owner("granville-whisper", registry("acme", official=True))
    assert choose(trusted, None, "linux-x86_64").version == "99.0"


def test_a_registry_that_cannot_be_read_ends_the_search() -> None:
    """Else whoever keeps the first from being reached could have a name taken from the second."""
    world = World(down=BadSignature("forged"), other={NAME: entry("1.0", v1_0=["any"])})
    with pytest.raises(BadSignature, match=f"forged. {NAME} may be a driver of registry down, so no other is asked"):
        world.owner(NAME, registry("down"), registry("other"))
    assert world.asked == ["down"]


def test_a_name_that_nobody_has() -> None:
    world = World(acme={NAME: entry("1.0", v1_0=["any"]), "granville-x": entry("1.0")})
    with pytest.raises(StartupError, match=f"no driver acme-granville-tpo in registry acme .*did you mean {NAME}"):
        world.owner("acme-granville-tpo", registry("acme"))
    with pytest.raises(StartupError, match=f"there are: {NAME}$"):
        world.owner("zzz-granville-qqqqqqqq", registry("acme"))
    with pytest.raises(StartupError, match="names are granville-<backend>"):
        world.owner("../etc", registry("acme"))
    assert world.asked == ["acme", "acme"]


def owned(found: DriverEntry, location: str | Path | None = "https://acme.example/d/registry.json") -> Owned:
    place = Registry("acme", location)
    return Owned(NAME, Loaded(place, Index(version=1, drivers={NAME: found})), found)


def test_the_latest_version_unless_another_is_asked_for() -> None:
    found = owned(entry("1.10", v1_9=["any"], v1_10=["any"], v2_0=["any"]))
    assert choose(found, None, "linux-x86_64").version == "1.10"
    assert choose(found, "1.9", "linux-x86_64").version == "1.9"
    lost = owned(entry("3.0", v1_9=["any"], v1_10=["any"]))
    assert choose(lost, None, "linux-x86_64").version == "1.10"


def test_the_build_for_this_machine() -> None:
    found = owned(entry("1.0", v1_0=["linux-arm64", "linux-x86_64", "any"]))
    assert choose(found, None, "linux-x86_64").platform == "linux-x86_64"
    assert choose(found, None, "linux-aarch64").platform == "linux-arm64"  # two names for one processor
    assert choose(found, None, "darwin-arm64").platform == "any"


def test_no_build_for_this_machine_says_which_there_are() -> None:
    found = owned(entry("2.0", v1_0=["linux-x86_64"], v1_5=["linux-x86_64"], v2_0=["darwin-arm64", "windows-x86_64"]))
    with pytest.raises(
        StartupError,
        match=rf"{NAME} 2\.0 has no build for linux-x86_64; it has builds for darwin-arm64, windows-x86_64; "
        rf"there is one of version 1\.5: {NAME}==1\.5",
    ):
        choose(found, None, "linux-x86_64")


def test_an_entry_without_builds_says_where_its_source_is() -> None:
    with pytest.raises(StartupError, match=r"lists no build of it to install; its source is at https://git\.example"):
        choose(owned(DriverEntry(repo="https://git.example")), None, "linux-x86_64")


@pytest.mark.parametrize(
    ("base", "url", "location"),
    [
        ("https://a.example/d/registry.json", "x/y.tgz", "https://a.example/d/x/y.tgz"),
        ("https://a.example/d/registry.json", "/y.tgz", "https://a.example/y.tgz"),
        ("https://a.example/registry.json", "https://cdn.example/y.tgz", "https://cdn.example/y.tgz"),
        ("http://127.0.0.1:8/registry.json", "y.tgz", "http://127.0.0.1:8/y.tgz"),
        (Path("/srv/r/registry.json"), "x/y.tgz", Path("/srv/r/x/y.tgz")),
        (Path("/srv/r/registry.json"), "file:///tmp/y.tgz", Path("/tmp/y.tgz")),
        (Path("/srv/r/registry.json"), "https://cdn.example/y.tgz", "https://cdn.example/y.tgz"),
        (None, "https://cdn.example/y.tgz", "https://cdn.example/y.tgz"),
    ],
)
def test_where_an_artifact_is(base: str | Path | None, url: str, location: str | Path) -> None:
    found = DriverEntry(latest_version="1", versions={"1": Version(artifacts={"any": artifact(url)})})
    assert choose(owned(found, base), None, "linux-x86_64").location == location


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://a.example/registry.json", "file:///etc/passwd"),
        ("https://a.example/registry.json", "http://a.example/y.tgz"),
        ("https://a.example/registry.json", "ftp://a.example/y.tgz"),
        ("https://a.example/registry.json", "//[/y"),
        (Path("/srv/registry.json"), "http://a.example/y.tgz"),
        (None, "y.tgz"),
    ],
)
def test_where_an_artifact_may_not_be(base: str | Path | None, url: str) -> None:
    found = DriverEntry(latest_version="1", versions={"1": Version(artifacts={"any": artifact(url)})})
    with pytest.raises(StartupError, match=f"registry .*: the URL of {NAME}"):
        choose(owned(found, base), None, "linux-x86_64")


def test_versions_in_their_order() -> None:
    assert in_order(["1.10", "1.9", "nightly", "1.9rc1"]) == ["nightly", "1.9rc1", "1.9", "1.10"]
    assert newest(["1.0", "2.0rc1"]) == "1.0"
    assert newest(["2.0rc1"]) == "2.0rc1"
    assert [compare("1.9", "1.10"), compare("1.0", "1.0.0"), compare("2", "1")] == [-1, 0, 1]
    assert [compare("nightly", "nightly"), compare("nightly", "1.0"), compare("1.0", "nightly")] == [0, 1, 1]


def test_a_signature_is_over_every_byte(tmp_path: Path) -> None:
    signer = make_key(tmp_path / "key")
    key = parse_public_key(signer.public_key)
    data = b'{"version": 1}'
    signature = signer.sign(data)
    verify(data, signature, key, "x")
    verify(data, Signer(tmp_path / "key").sign(data), key, "x")
    for wrong_data, wrong in (
        (data + b" ", signature),
        (b'{"version": 2}', signature),
        (data, make_key(tmp_path / "other").sign(data)),
        (data, base64.b64encode(bytes(64))),
        (data, b"no base64"),
        (data, b""),
        (data, signature[:40]),
        (data, None),
    ):
        with pytest.raises(BadSignature):
            verify(wrong_data, wrong, key, "x")


def test_a_private_key_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StartupError, match="is there already; a key is never replaced"):
        make_key(path)
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(StartupError, match="others may read this key; `chmod 600"):
            Signer(path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(StartupError, match="not a private key in PEM"):
        Signer(path)
    with pytest.raises(StartupError, match="cannot be read"):
        Signer(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:" + "A" * 44, "ed25519:" + "é" * 44])
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(StartupError, match="expected ed25519: and 32 bytes in base64"):
        parse_public_key(text)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")
def test_openssl_makes_keys_and_checks_signatures(tmp_path: Path) -> None:
    """The formats are nobody's own."""

    def openssl(*arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key")
    (tmp_path / "key").chmod(0o600)
    signer = Signer(tmp_path / "key")
    openssl("pkey", "-in", "key", "-pubout", "-out", "public")
    (tmp_path / "data").write_bytes(b"signed")
    (tmp_path / "raw").write_bytes(base64.b64decode(signer.sign(b"signed")))
    said = openssl("pkeyutl", "-verify", "-pubin", "-inkey", "public", "-rawin", "-in", "data", "-sigfile", "raw")
    assert b"Verified Successfully" in said
    openssl("genpkey", "-algorithm", "ed448", "-out", "other")
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(StartupError, match="another kind of key"):
        Signer(tmp_path / "other")


KEY = (
    "ed25519:"
    + base64.b64encode(bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")).decode()
)


def test_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configured(tmp_path) == []
    (tmp_path / "here").mkdir()
    (tmp_path / "config.toml").write_text(
        f"""
        [[registry]]
        name = "acme"
        url = "https://user:word@acme.example/drivers/"
        key = "{KEY}"
        [[registry]]
        name = "house"
        url = "here"
        official = true
        [other]
        thing = 1
        """
    )
    acme, house = configured(tmp_path)
    assert (acme.name, acme.location, acme.official) == (
        "acme",
        "https://user:word@acme.example/drivers/registry.json",
        False,
    )
    assert acme.key == parse_public_key(KEY)
    assert "word" not in acme.shown
    assert (house.location, house.key, house.official) == (tmp_path / "here" / "registry.json", None, True)
    assert registries(folder=tmp_path) == [THE_EMBEDDED, acme, house]
    assert registries(["house"], tmp_path) == [THE_EMBEDDED, house]
    # Its URL in place of its name does not get round its key.
    assert registries(["https://user:word@acme.example/drivers/"], tmp_path) == [THE_EMBEDDED, acme]
    assert registries([str(tmp_path / "here")], tmp_path) == [THE_EMBEDDED, house]
    (_, other) = registries(["https://other.example/r.json"], tmp_path)
    assert (other.key, other.official) == (None, False)
    with pytest.raises(StartupError, match=r"--registry bcme: no such registry is configured \(there: acme, house\)"):
        registries(["bcme"], tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[registry]", "config.toml: Expected"),
        ("registry = 1", "registry"),
        ('[[registry]]\nname = "a"', "url"),
        ('[[registry]]\nname = "a"\nurl = "https://a"\nkeys = "x"', "keys"),
        ('[[registry]]\nname = "a"\nurl = "http://a.example/"', "http:// is taken of this machine alone"),
        ('[[registry]]\nname = "a"\nurl = "ftp://a"', "expected https://"),
        ('[[registry]]\nname = "a"\nurl = "https://"', "expected https://"),
        ('[[registry]]\nname = "a"\nurl = "file://host/x"', "the whole path of a file here"),
        ('[[registry]]\nname = "a"\nurl = "https://a"\nkey = "x"', "registry 'a': key: expected ed25519:"),
        ('[[registry]]\nname = "a"\nurl = "x"\n[[registry]]\nname = "a"\nurl = "y"', "the name 'a' is taken"),
        ('[[registry]]\nname = "embedded"\nurl = "x"', "the name 'embedded' is taken"),
        ('[[registry]]\nname = ""\nurl = "x"', "is no name"),
    ],
)
def test_a_wrong_configuration_names_the_file_and_the_place(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(StartupError) as caught:
        configured(tmp_path)
    assert caught.value.message.startswith(f"{tmp_path / 'config.toml'}: ")
    assert why in caught.value.message


def test_a_key_that_is_forgotten_in_the_configuration_stops_everything(tmp_path: Path) -> None:
    """Not: is passed over, with what it would have asked for."""
    (tmp_path / "config.toml").write_text('[[registry]]\nname = "a"\nurl = "https://a"\nkey = ""')
    with pytest.raises(StartupError, match="expected ed25519:"):
        registries(folder=tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8/x", "http://[::1]/x", "http://localhost:8/x", "https://a/x"])
def test_http_is_for_loopback(url: str, tmp_path: Path) -> None:
    assert parse_location(url, tmp_path) == url


@pytest.mark.parametrize("url", ["http://127.0.0.1.evil.example/", "http://10.0.0.1/", "http://localhost.evil/"])
def test_http_is_for_nothing_else(url: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="of this machine alone"):
        parse_location(url, tmp_path)


def test_what_can_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.tgz").write_bytes(b"")
    assert parse_wanted(NAME) == ByName(NAME)
    assert parse_wanted(f"{NAME}==1.2") == ByName(NAME, "1.2")
    assert parse_wanted(f"https://a/b.tgz#sha256={DIGEST}") == ByUrl("https://a/b.tgz", DIGEST)
    assert parse_wanted("https://a/b.tgz", DIGEST.upper()) == ByUrl("https://a/b.tgz", DIGEST)
    assert parse_wanted("https://a/b.tgz", unverified=True) == ByUrl("https://a/b.tgz", None)
    assert parse_wanted("./folder") == ByPath(tmp_path / "folder")
    assert parse_wanted("a.tgz", DIGEST) == ByPath(tmp_path / "a.tgz", DIGEST)
    assert parse_wanted(f"./a.tgz#sha256={DIGEST}") == ByPath(tmp_path / "a.tgz", DIGEST)
    assert parse_wanted(f"file://{tmp_path}/a.tgz") == ByPath(tmp_path / "a.tgz")


@pytest.mark.parametrize(
    ("text", "sha256", "unverified", "why"),
    [
        ("folder", None, False, "names are granville-<backend>.*for what lies here, write ./folder"),
        (NAME, DIGEST, False, "for a name the registry has the hash"),
        (NAME, None, True, "--unverified: only for a URL"),
        (f"{NAME}==", None, False, "expected NAME"),
        (f"{NAME}=1", None, False, "expected NAME"),
        ("two words", None, False, "expected NAME"),
        ("", None, False, "expected NAME"),
        (f"{NAME}==../x", None, False, "there is no"),
        (f"{NAME}==a:b", None, False, "version: expected one such as"),
        ("./none", None, False, "there is no /"),
        ("./folder", DIGEST, False, "a folder has none"),
        ("https://a/b.tgz", None, False, "needs its SHA-256"),
        ("https://a/b.tgz", "abc", False, "64 hexadecimal digits"),
        ("https://a/b.tgz#md5=1", None, False, "expected #sha256=HEX"),
        (f"https://a/b.tgz#sha256={DIGEST}", "cd" * 32, False, "two different hashes"),
        (f"https://a/b.tgz#sha256={DIGEST}", None, True, "there is a hash"),
        ("http://a.example/b.tgz", None, True, "of this machine alone"),
        ("ftp://a/b.tgz", DIGEST, False, "expected https://"),
        ("/dev/null", None, False, "neither a file nor a folder"),
    ],
)
def test_what_cannot(
    text: str, sha256: str | None, unverified: bool, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StartupError, match=why):
        parse_wanted(text, sha256, unverified=unverified)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def crash(_: int) -> None:
        raise OSError("crash")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="crash"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("seconds", "said"), [(5, "a moment ago"), (90, "1 minute ago"), (7300, "2 hours ago"), (86_400 * 3, "3 days ago")]
)
def test_ages(seconds: float, said: str) -> None:
    assert ago(seconds) == said
