"""driver.json: what a folder with a driver says of itself, and the rules for its name.

The format is older than this program and is read as it is; fields that are not known here are passed over.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from granville.errors import StartupError

MANIFEST = "driver.json"
MAX_MANIFEST_BYTES = 256 << 10
MAX_NAME_CHARS = 64
MAX_VERSION_CHARS = 64
NAMING = "names are granville-<backend> for official drivers and <vendor>-granville-<name> for others, of a-z, 0-9, -"

Abi = Literal["c1", "c2", "python"]
ANY_PLATFORM = "any"
"""Of drivers in Python, which have no build."""

_WORDS = "[a-z0-9]+(?:-[a-z0-9]+)*"
_OFFICIAL = re.compile(f"granville-{_WORDS}")
_COMMUNITY = re.compile(f"{_WORDS}-granville-{_WORDS}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_-]*")
_ENTRY = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}")
_SYSTEMS = {"win32": "windows", "cygwin": "windows"}
_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


class DriverManifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A driver.json that has been checked. Names of fields are the format's."""

    name: str
    version: str
    description: str = ""
    platform: str = ""
    """Such as `linux-x86_64`; `any`; empty where it is not said, as beside sources."""
    lib_name: str = ""
    """The library's file name; empty for the usual one."""
    abi: Abi | None = None
    """None: the library tells."""
    sha256: str = ""
    """Of the file that `file` gives, in hex."""
    capabilities: tuple[str, ...] = ()
    """Model types of the protocol."""
    config: dict[str, Any] = {}
    """Options that hold unless others are given."""
    config_schema: dict[str, Any] | None = None
    """JSON Schema of the options, an object."""
    entry: str = ""
    """`module:Class`, of a driver in Python; the module lies in the folder."""

    @property
    def official(self) -> bool:
        return is_official(self.name)

    @property
    def file_name(self) -> str:
        """The library, as it is called inside the folder."""
        return self.lib_name or library_name(self.name, self.platform)

    def file(self, folder: Path) -> Path:
        """What is opened: the library, or the entry's module. It need not exist."""
        if self.abi != "python":
            return folder / self.file_name
        module = folder.joinpath(*self.entry.partition(":")[0].split("."))
        package = module / "__init__.py"
        return package if package.is_file() else module.with_suffix(".py")


def read_manifest(folder: Path) -> DriverManifest:
    """The driver.json of a folder, its fields checked; not whether the file that it names is there (`check_file`).
    Raises StartupError."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}; a driver's folder has a {MANIFEST}") from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, where: str = MANIFEST) -> DriverManifest:
    """`where` is what the errors name. Raises StartupError."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise StartupError(f"{where}: has more than the {MAX_MANIFEST_BYTES} bytes that are allowed")
    try:
        manifest = msgspec.json.decode(data, type=DriverManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StartupError(f"{where}: {error}") from None
    try:
        _check(manifest)
    except StartupError as error:
        raise StartupError(f"{where}: {error.message}") from None
    return manifest


def _check(manifest: DriverManifest) -> None:
    check_name(manifest.name)
    check_version(manifest.version)
    if not _is_file_name(manifest.file_name):
        raise StartupError(f"lib_name: {manifest.lib_name[:80]!r} is no file name; the library lies in the folder")
    if (
        manifest.platform
        and manifest.platform != ANY_PLATFORM
        and not re.fullmatch(r"[a-z0-9]+-[a-z0-9_]+", manifest.platform)
    ):
        raise StartupError(f"platform: expected one such as {this_platform()}, got {manifest.platform[:80]!r}")
    if manifest.sha256 and not _SHA256.fullmatch(manifest.sha256):
        raise StartupError("sha256: expected 64 hexadecimal digits in lower case")
    if manifest.abi == "python":
        if not _ENTRY.fullmatch(manifest.entry):
            raise StartupError(f'entry: abi python needs "module:Class", got {manifest.entry[:80]!r}')
    elif manifest.entry:
        raise StartupError('entry: only with "abi": "python"')
    elif manifest.platform == ANY_PLATFORM:
        raise StartupError(f"platform: a library has one such as {this_platform()}; any is for abi python")


def check_file(manifest: DriverManifest, folder: Path) -> Path:
    """The library or entry file, once it is known to be for this machine, to be there, and to be the one that the
    manifest tells of. Raises StartupError."""
    where = folder / MANIFEST
    if manifest.platform not in ("", ANY_PLATFORM) and normal_platform(manifest.platform) != this_platform():
        raise StartupError(f"{where}: the driver is for {manifest.platform} and this machine is {this_platform()}")
    path = manifest.file(folder)
    if not path.is_file():
        raise StartupError(f"{where}: its file {path.relative_to(folder)} is not in the folder")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StartupError(f"{where}: its file {path.relative_to(folder)} is a link that leads out of the folder")
    if manifest.sha256:
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise StartupError(f"{path}: cannot be read: {error.strerror}") from None
        if digest != manifest.sha256:
            raise StartupError(f"{path}: its SHA-256 is {digest}, and driver.json says {manifest.sha256}")
    return path


def check_same(manifest: DriverManifest, name: str, version: str, folder: Path) -> None:
    """What the driver says of itself must be what its driver.json says. Raises StartupError."""
    for field, said, own in (("name", manifest.name, name), ("version", manifest.version, version)):
        if said != own:
            raise StartupError(f"{folder / MANIFEST}: {field} is {said!r}, and the driver itself says {own!r}")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(name: str) -> str:
    """The name, if it follows the rules. Raises StartupError."""
    if len(name) > MAX_NAME_CHARS:
        raise StartupError(f"name: {name[:80]!r} has {len(name)} characters; {MAX_NAME_CHARS} are the most")
    if not (_OFFICIAL.fullmatch(name) or _COMMUNITY.fullmatch(name)):
        raise StartupError(f"name: {name!r} cannot be a driver's; {NAMING}")
    return name


def is_official(name: str) -> bool:
    return _OFFICIAL.fullmatch(name) is not None


def check_version(version: str) -> str:
    """The version, if it can be part of a file's name. Raises StartupError."""
    if len(version) > MAX_VERSION_CHARS or not _VERSION.fullmatch(version):
        raise StartupError(f"version: expected one such as 1.2.0, got {version[:80]!r}")
    return version


def this_platform() -> str:
    """Such as linux-x86_64, darwin-arm64, windows-x86_64."""
    return normal_platform(f"{_SYSTEMS.get(sys.platform, sys.platform)}-{platform.machine().lower()}")


def normal_platform(text: str) -> str:
    """One spelling for each: processors have several names."""
    system, _, machine = text.partition("-")
    machine = _MACHINES.get(machine, machine)
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    return f"{system}-{machine}"


def library_name(name: str, platform: str = "") -> str:
    """The usual file name of a driver's library on a platform, this one unless given."""
    system = (platform or this_platform()).partition("-")[0]
    stem = name.replace("-", "_")
    if system == "windows":
        return f"{stem}.dll"
    return f"lib{stem}.{'dylib' if system == 'darwin' else 'so'}"


def _is_file_name(text: str) -> bool:
    return text not in (".", "..") and not any(char in "/\\:" or not char.isprintable() for char in text)
