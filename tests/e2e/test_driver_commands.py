"""`granville driver install | list | remove | publish | keygen`, as a person types them, and what they withstand."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from granville.hosting.manifest import this_platform
from tests.e2e.harness import environment, eventually, granville, running
from tests.e2e.index_site import IndexSite, serving

NAME = "acme-granville-shout"
CODE = """
from granville.testing.fake import FakeDriver


class ShoutDriver(FakeDriver):
    name = "acme-granville-shout"
    version = "{version}"
"""


def make_driver(folder: Path, version: str = "1.0", *, name: str = NAME, **more: object) -> Path:
    """A driver in Python that can be served with."""
    folder.mkdir(parents=True)
    (folder / "shout.py").write_text(CODE.format(version=version))
    manifest = {
        "name": name,
        "version": version,
        "description": "says it loudly",
        "platform": "any",
        "abi": "python",
        "entry": "shout:ShoutDriver",
        "capabilities": ["inference"],
    }
    (folder / "driver.json").write_text(json.dumps(manifest | more))
    return folder


def archive_of(*entries: tuple[str, bytes], link: str | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return gzip.compress(out.getvalue())


class Person:
    """Types commands, in a home of their own. Each returns what was printed, or what was complained of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drivers = folder / "drivers"

    def ok(self, *arguments: object) -> str:
        done = granville(self.folder, "driver", *map(str, arguments))
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def fails(self, *arguments: object, status: int = 1) -> str:
        done = granville(self.folder, "driver", *map(str, arguments))
        assert done.returncode == status, done.stdout + done.stderr
        assert done.stderr.startswith("granville: ")
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    def listed(self) -> dict[str, dict[str, Any]]:
        """What is installed, by name."""
        found = json.loads(self.ok("list", "--json"))["drivers"]
        return {one["name"]: one for one in found if not one["bundled"]}

    def leftovers(self) -> list[str]:
        """What an install was working on. (The lock of a process that was killed is free, and its file empty.)"""
        return [path.name for path in self.drivers.iterdir() if path.name.startswith(".stage")]

    def configure(self, *registries: dict[str, object]) -> None:
        text = ""
        for one in registries:
            text += "[[registry]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in one.items())
        (self.folder / "config.toml").write_text(text)


@pytest.fixture
def person(folder: Path) -> Person:
    return Person(folder)


@pytest.fixture
def site(folder: Path) -> Iterator[IndexSite]:
    with serving(IndexSite(folder / "site")) as site:
        yield site


def test_from_a_folder_to_the_list_and_away_again(person: Person) -> None:
    assert person.ok("list").splitlines()[0] == "No drivers"
    source = make_driver(person.folder / "src")
    (source / "__pycache__").mkdir()
    (source / ".git").mkdir()
    said = person.ok("install", source)
    assert said == f"{NAME} 1.0 is installed: {person.drivers / NAME}\n"
    assert {path.name for path in (person.drivers / NAME).iterdir()} == {"driver.json", "shout.py", "installed.json"}
    table = person.ok("list")
    assert "No drivers" not in table
    assert "granville-llama" in table
    one = person.listed()[NAME]
    assert (one["version"], one["backend"], one["capabilities"], one["problem"]) == (
        "1.0",
        "python",
        ["inference"],
        None,
    )
    assert (one["source"], one["registry"]) == (str(source), None)
    assert one["size_bytes"] > 100
    assert "is installed already" in person.ok("install", source)
    assert person.ok("remove", NAME) == f"{NAME} is removed\n"
    assert person.listed() == {}
    assert list(person.drivers.iterdir()) == []


def test_an_archive_and_its_hash(person: Person) -> None:
    source = make_driver(person.folder / "src")
    person.ok("publish", source, "--to", person.folder / "out")
    (archive,) = (person.folder / "out").rglob("*.tar.gz")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert "expected SHA-256 000" in person.fails("install", archive, "--sha256", "0" * 64)
    assert person.listed() == {}
    person.ok("install", archive, "--sha256", digest)
    assert person.listed()[NAME]["sha256"] == digest


def test_newer_older_and_the_same(person: Person) -> None:
    old, new = make_driver(person.folder / "old", "1.9"), make_driver(person.folder / "new", "1.10")
    person.ok("install", old)
    assert f"{NAME} 1.10 is installed, in place of 1.9" in person.ok("install", new)
    assert "1.10 is installed, which is newer than 1.9; --force goes back" in person.fails("install", old)
    person.ok("install", old, "--force")
    assert person.listed()[NAME]["version"] == "1.9"
    assert "1.9" in (person.drivers / NAME / "shout.py").read_text()
    assert person.leftovers() == []


def test_publish_and_install_over_http(person: Person, site: IndexSite) -> None:
    for version in ("1.0", "1.1"):
        person.ok("publish", make_driver(person.folder / version, version), "--to", site.folder, "--license", "MIT")
    person.configure({"name": "acme", "url": site.url})
    person.ok("install", NAME)
    one = person.listed()[NAME]
    assert (one["version"], one["registry"]) == ("1.1", "acme")
    assert one["source"] == f"{site.url}{NAME}/1.1/{NAME}-any.tar.gz"
    person.ok("install", f"{NAME}==1.0", "--force")
    assert person.listed()[NAME]["version"] == "1.0"
    assert "has no version 3; it has 1.0, 1.1" in person.fails("install", f"{NAME}==3")
    assert f"did you mean {NAME}?" in person.fails("install", "acme-granville-shoud")
    assert not list(person.drivers.glob(".downloads/*"))


def test_publishing_twice_gives_the_same_bytes_and_changes_nothing(person: Person) -> None:
    source, out = make_driver(person.folder / "src"), person.folder / "out"
    person.ok("publish", source, "--to", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    os.utime(source / "shout.py", (1, 1))
    person.ok("publish", source, "--to", out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (source / "shout.py").write_text("other")
    assert "is published already, with other bytes" in person.fails("publish", source, "--to", out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    person.ok("publish", source, "--to", out, "--force")


def test_publish_keeps_what_else_is_in_the_index(person: Person) -> None:
    out = person.folder / "out"
    out.mkdir()
    other = {"description": "mine", "stars": 5}
    models = {"m": {"anything": 1}}
    (out / "registry.json").write_text(
        json.dumps({"version": 1, "drivers": {"acme-granville-b": other}, "models": models, "x": 1})
    )
    person.ok("publish", make_driver(person.folder / "src"), "--to", out, "--base-url", "https://a.example/d/")
    index = json.loads((out / "registry.json").read_text())
    assert (index["drivers"]["acme-granville-b"], index["models"], index["x"]) == (other, models, 1)
    artifact = index["drivers"][NAME]["versions"]["1.0"]["artifacts"]["any"]
    assert artifact["url"] == f"https://a.example/d/{NAME}/1.0/{NAME}-any.tar.gz"
    (out / "registry.json").write_text("broken")
    assert "not a registry's index" in person.fails("publish", make_driver(person.folder / "b", "2"), "--to", out)
    assert (out / "registry.json").read_text() == "broken"


def test_a_signed_registry(person: Person, site: IndexSite) -> None:
    key = person.ok("keygen", person.folder / "key").split('"')[1]
    publish = ("publish", make_driver(person.folder / "src"), "--to", site.folder)
    person.ok(*publish, "--sign", person.folder / "key")
    person.configure({"name": "acme", "url": site.url, "key": key})
    person.ok("install", NAME)
    person.ok("remove", NAME)
    # Somebody who can write to the server but has not the key.
    index = site.folder / "registry.json"
    index.write_text(index.read_text().replace("says it loudly", "says it quietly"))
    for arguments in ([NAME], [NAME, "--registry", "acme"], [NAME, "--registry", site.url]):
        assert "the signature is not that of the registry's key" in person.fails("install", *arguments)
    (site.folder / "registry.json.sig").unlink()
    assert "nothing is installed from it" in person.fails("install", NAME)
    assert person.listed() == {}
    person.ok(*publish, "--sign", person.folder / "key")
    assert "is signed; give --sign KEY" in person.fails(*publish)
    person.ok("install", NAME)
    (person.folder / "key").chmod(0o644)
    assert "others may read this key" in person.fails(*publish, "--sign", person.folder / "key")


def test_a_registry_that_is_away(person: Person) -> None:
    site = IndexSite(person.folder / "site")
    person.ok("publish", make_driver(person.folder / "src"), "--to", site.folder)
    with serving(site):
        person.configure({"name": "acme", "url": site.url})
        person.ok("install", NAME)
    said = person.ok("install", NAME)
    assert "cannot be reached" in said
    assert "the copy of a moment ago is used" in said
    assert "is installed already" in said


def test_an_archive_that_is_not_what_the_index_says(person: Person, site: IndexSite) -> None:
    person.ok("publish", make_driver(person.folder / "src"), "--to", site.folder)
    person.configure({"name": "acme", "url": site.url})
    (archive,) = site.folder.rglob("*.tar.gz")
    good = archive.read_bytes()
    evil = bytearray(good)
    evil[40] ^= 1
    archive.write_bytes(bytes(evil))
    assert "expected SHA-256" in person.fails("install", NAME)
    archive.write_bytes(good + b"more")
    assert "bytes" in person.fails("install", NAME)
    assert person.listed() == {}
    assert person.leftovers() == []
    archive.write_bytes(good)
    person.ok("install", NAME)


def test_no_name_is_taken_over(person: Person) -> None:
    """Whoever comes later in the order, or has no right to official names, gets nothing by a higher version."""
    for folder, version in (("ours", "1.0"), ("theirs", "99.0")):
        person.ok("publish", make_driver(person.folder / f"{folder}-src", version), "--to", person.folder / folder)
    official = make_driver(person.folder / "official", "9.0", name="granville-vosk")
    person.ok("publish", official, "--to", person.folder / "theirs")
    person.configure({"name": "ours", "url": "ours"}, {"name": "theirs", "url": "theirs"})
    person.ok("install", NAME)
    assert (person.listed()[NAME]["version"], person.listed()[NAME]["registry"]) == ("1.0", "ours")
    assert "belongs to registry ours" in person.fails("install", f"{NAME}==99.0")
    assert "is not marked official" in person.fails("install", "granville-vosk")
    person.configure({"name": "theirs", "url": "theirs", "official": True})
    person.ok("install", "granville-vosk")


def test_the_wrong_machine(person: Person) -> None:
    for platform in ("darwin-arm64", "windows-x86_64"):
        other = make_driver(person.folder / platform, platform=platform)
        person.ok("publish", other, "--to", person.folder / "out")
    said = person.fails("install", NAME, "--registry", person.folder / "out")
    assert f"has no build for {this_platform()}; it has builds for darwin-arm64, windows-x86_64" in said
    assert "the driver is for darwin-arm64 and this machine is" in person.fails(
        "install", person.folder / "darwin-arm64"
    )


MANIFEST = json.dumps(
    {"name": NAME, "version": "1.0", "platform": "any", "abi": "python", "entry": "shout:ShoutDriver"}
).encode()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (archive_of(("a/driver.json", MANIFEST), ("../../evil", b"x")), "leads out of its folder"),
        (archive_of(("a/driver.json", MANIFEST), ("/tmp/evil", b"x")), "is an absolute path"),
        (archive_of(("a/driver.json", MANIFEST), link="a/shout.py"), "is a link"),
        (archive_of(("a/driver.json", MANIFEST), ("b/c", b"x")), "only one folder may be at the top"),
        (archive_of(("a/driver.json", MANIFEST), ("a/zeros", bytes(40 << 20))), "unpacks to more than"),
        (archive_of(("a/driver.json", MANIFEST)), "its file shout.py is not in the folder"),
        (archive_of(("a/shout.py", b"")), "a driver's folder has a driver.json"),
        (archive_of(("a/driver.json", b"{")), "driver.json: "),
        (archive_of(("a/driver.json", MANIFEST.replace(b"acme-", b"..-"))), "cannot be a driver's; names are"),
        (
            archive_of(("a/driver.json", MANIFEST.replace(NAME.encode(), b"granville-llama")), ("a/shout.py", b"")),
            "--force",
        ),
        (b"no archive", "not an archive"),
        (b"", "not an archive"),
    ],
)
def test_an_evil_archive_leaves_nothing(person: Person, data: bytes, why: str) -> None:
    path = person.folder / "evil.tar.gz"
    path.write_bytes(data)
    assert why in person.fails("install", path)
    assert person.listed() == {}
    assert list(person.drivers.iterdir()) == []
    assert not (person.folder / "evil").exists()


def test_a_driver_json_that_lies_about_its_file(person: Person) -> None:
    source = make_driver(person.folder / "src", sha256="0" * 64)
    assert "driver.json says 0000" in person.fails("install", source)
    assert "is not the one in driver.json" in person.fails("publish", source, "--to", person.folder / "out")


def test_a_release_that_is_another_driver(person: Person) -> None:
    out = person.folder / "out"
    person.ok("publish", make_driver(person.folder / "src"), "--to", out)
    index = (out / "registry.json").read_text()
    (out / "registry.json").write_text(index.replace(f'"{NAME}": {{', '"acme-granville-other": {'))
    said = person.fails("install", "acme-granville-other", "--registry", out)
    assert f"its name is {NAME}, the registry says acme-granville-other" in said
    (out / "registry.json").write_text(index.replace('"1.0"', '"1.1"'))
    assert "its version is 1.0, the registry says 1.1" in person.fails("install", NAME, "--registry", out)


def test_a_url_needs_a_hash(person: Person, site: IndexSite) -> None:
    person.ok("publish", make_driver(person.folder / "src"), "--to", site.folder)
    (archive,) = site.folder.rglob("*.tar.gz")
    url = f"{site.url}{archive.relative_to(site.folder)}"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert "needs its SHA-256" in person.fails("install", url)
    assert site.answers == []
    assert "expected SHA-256 0000" in person.fails("install", f"{url}#sha256={'0' * 64}")
    assert f"has the SHA-256 {digest}" in person.ok("install", url, "--unverified")
    assert person.listed()[NAME]["sha256"] == digest
    person.ok("install", f"{url}#sha256={digest}", "--force")
    assert person.listed()[NAME]["source"] == url


def test_bundled_drivers(person: Person) -> None:
    assert "granville-llama 0.1.0 is bundled" in person.ok("install", "granville-llama")
    assert "granville-llama is bundled" in person.fails("remove", "granville-llama")


def test_wrong_command_lines(person: Person) -> None:
    assert "did you mean `granville driver install`?" in person.fails("instal", status=2)
    assert "WHAT" in person.fails("install", status=2)
    assert "--bogus" in person.fails("install", NAME, "--bogus", status=2)
    assert "--to" in person.fails("publish", ".", status=2)
    assert "names are granville-<backend>" in person.fails("install", "whisper")
    assert "installed are: none" in person.fails("remove", "acme-granville-x")
    assert "no driver ../models is installed" in person.fails("remove", "../models")
    assert "a driver's folder has a driver.json" in person.fails("publish", person.folder, "--to", person.folder / "o")
    assert "granville driver publish FOLDER" in person.ok()


def test_a_driver_that_a_daemon_uses_stays(person: Person, folder: Path) -> None:
    new = make_driver(person.folder / "new", "2.0")
    person.ok("install", make_driver(person.folder / "src"))
    with running(folder, driver=NAME) as daemon:
        assert daemon.answer("hello")
        assert f"{NAME} is in use by a running daemon" in person.fails("remove", NAME)
        assert f"{NAME} is in use by a running daemon" in person.fails("install", new)
        assert daemon.answer("still there")
        assert person.listed()[NAME]["version"] == "1.0"
        assert person.leftovers() == []
    person.ok("install", new)
    person.ok("remove", NAME)


DIES = """
import os, signal, sys
from granville.cli.main import main
from granville.hosting import store, swap
from granville.registry import install

def dies(module, name, *, after):
    real = getattr(module, name)
    def killed(*arguments, **options):
        if after:
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, killed)

where, after = sys.argv[1].split(":")
owner, _, name = where.rpartition(".")
if sys.argv[2] == "plain":
    store.exchange = lambda one, other: False
dies({"store": store, "install": install, "os": os}[owner], name, after=after == "after")
main(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("way", "moment", "version"),
    [
        ("exchange", "install.unpack:before", "1.0"),
        ("exchange", "install.unpack:after", "1.0"),
        ("exchange", "store.sync_tree:before", "1.0"),
        ("exchange", "store.exchange:before", "1.0"),
        ("exchange", "store.exchange:after", "2.0"),
        ("exchange", "store._clear:before", "2.0"),
        ("plain", "os.rename:before", "1.0"),
        ("plain", "os.rename:after", "1.0"),
        ("plain", "store._clear:before", "2.0"),
    ],
)
def test_killed_in_the_middle_of_an_install(person: Person, way: str, moment: str, version: str) -> None:
    """Whole, the old one or the new one, and the next install clears away what was left. Plain is a file system where
    two folders cannot change places."""
    person.ok("install", make_driver(person.folder / "old"))
    new = make_driver(person.folder / "new", "2.0")
    done = subprocess.run(
        [sys.executable, "-c", DIES, moment, way, "driver", "install", str(new)],
        env=environment(person.folder),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert person.leftovers()
    other = make_driver(person.folder / "other", name="acme-granville-other")
    person.ok("install", other)
    assert person.leftovers() == []
    assert person.listed()[NAME]["version"] == version
    assert f'version = "{version}"' in (person.drivers / NAME / "shout.py").read_text()
    person.ok("install", new)
    assert person.listed()[NAME]["version"] == "2.0"


def test_ctrl_c_in_a_download(person: Person, site: IndexSite) -> None:
    person.ok("publish", make_driver(person.folder / "src"), "--to", site.folder)
    person.configure({"name": "acme", "url": site.url})
    (archive,) = site.folder.rglob("*.tar.gz")
    asked = f"/{archive.relative_to(site.folder)}"
    answer = site._found

    def slow(path: str) -> tuple[int, bytes, str | None]:
        if path == asked:
            site.answers.append((path, 0))
            time.sleep(1.0)
        return answer(path)

    site._found = slow  # type: ignore[method-assign]
    command = [sys.executable, "-m", "granville", "driver", "install", NAME]
    with subprocess.Popen(command, env=environment(person.folder), stderr=subprocess.PIPE) as process:
        eventually(lambda: (asked, 0) in site.answers)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert person.listed() == {}
    assert person.leftovers() == []
    site._found = answer  # type: ignore[method-assign]
    person.ok("install", NAME)


def test_two_installs_at_once(person: Person) -> None:
    sources = [make_driver(person.folder / version, version) for version in ("1.0", "2.0", "3.0")]

    async def main() -> list[int | None]:
        started = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "granville", "driver", "install", str(source), "--force"),
                env=environment(person.folder),
                stdout=subprocess.DEVNULL,
            )
            for source in sources
        ]
        return [await process.wait() for process in started]

    assert asyncio.run(main()) == [0, 0, 0]
    version = person.listed()[NAME]["version"]
    assert f'version = "{version}"' in (person.drivers / NAME / "shout.py").read_text()
    assert person.leftovers() == []
