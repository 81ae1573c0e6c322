"""registry.json as typed values. `registry.schema.json` beside this module is the same for other programs.

The format is older than this program: of a driver nothing has to be there, and what is not known here is passed over.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from granville.errors import StartupError

VERSION = 1
MAX_INDEX_BYTES = 16 << 20
MAX_DRIVERS = 20_000

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class Artifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One build of one version: an archive `<name>-<platform>.tar.gz` with one folder at its top."""

    url: Annotated[str, Meta(min_length=1, max_length=4096)]
    """Absolute, or relative to the index."""
    sha256: Digest
    size_bytes: Annotated[int, Meta(ge=1)]
    abi: str | None = None
    """c1, c2 or python."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    artifacts: dict[str, Artifact] = {}
    """By platform, such as `linux-x86_64`; `any` for a driver without a build."""


class DriverEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A driver of the index. `license` is an SPDX expression."""

    description: str = ""
    repo: str | None = None
    official: bool = False
    latest_version: str = ""
    platforms: list[str] = []
    capabilities: list[str] = []
    license: str | None = None
    versions: dict[str, Version] = {}


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """A whole registry.json. Its models stay as they are: whoever has a use for them decodes them."""

    version: int
    drivers: dict[str, DriverEntry] = {}
    naming_convention: dict[str, str] = {}
    models: msgspec.Raw | UnsetType = UNSET


class BadIndex(StartupError):
    """Bytes that are no index."""


def parse_index(data: bytes, where: str) -> Index:
    """Raises BadIndex, which names the place in the file."""
    if len(data) > MAX_INDEX_BYTES:
        raise BadIndex(f"{where}: more than {MAX_INDEX_BYTES} bytes, too many for an index")
    try:
        index = msgspec.json.decode(data, type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadIndex(f"{where}: not a registry's index: {error}") from None
    if index.version != VERSION:
        raise BadIndex(f"{where}: an index of version {index.version}; this Granville reads version {VERSION}")
    if len(index.drivers) > MAX_DRIVERS:
        raise BadIndex(f"{where}: {len(index.drivers)} drivers, at most {MAX_DRIVERS} are taken")
    return index


@cache
def embedded() -> Index:
    """What this Granville came with. In a checkout that is the file at its top, else the package's own copy."""
    here = Path(__file__).resolve().parent
    packaged, top = here / "registry.json", here.parents[1] / "registry.json"
    path = packaged if packaged.exists() else top
    return parse_index(path.read_bytes(), str(path))


def json_schema() -> dict[str, Any]:
    """The published JSON Schema of registry.json."""
    return msgspec.json.decode(Path(__file__).with_name("registry.schema.json").read_bytes(), type=dict[str, Any])
