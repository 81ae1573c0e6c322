"""Files on a model hub: how they are named, where the hub is, and the token that it may want.

`hf://owner/repo/path/file.gguf@revision` (also with the revision behind the repository, as huggingface's own tools
write it, and with the scheme `huggingface://`), or the address of its page. The environment is the one that those tools
read: HF_ENDPOINT, HF_TOKEN, HUGGING_FACE_HUB_TOKEN.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from granville.errors import StartupError
from granville.fetch.names import check_file_name

DEFAULT_ENDPOINT = "https://huggingface.co"
HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
SCHEMES = ("hf", "huggingface")
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
MAIN = "main"
EXPECTED = "expected hf://owner/repo/path/file.gguf, with @revision behind it where it is not main"
_REPO_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,253}[A-Za-z0-9])?")
_PAGE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a repository on the hub, which itself tells the file's hash."""

    repo: str
    """`owner/name`."""
    path: str
    """Inside the repository."""
    revision: str = MAIN
    """A branch, a tag or a commit."""
    sha256: str | None = None
    size: int | None = None

    @property
    def place(self) -> PurePosixPath:
        """One folder a repository and revision, so that two files of one name do not meet."""
        names = self.path.split("/")
        for name in names:
            check_file_name(name, self.text)
        folder = f"{self.repo}@{self.revision}".replace("/", "--")
        return PurePosixPath(folder, *names)

    @property
    def text(self) -> str:
        """As a person would type it."""
        behind = "" if self.revision == MAIN else f"@{self.revision}"
        return f"hf://{self.repo}/{self.path}{behind}"


def parse_hub(text: str, sha256: str | None) -> HubSource:
    """What follows `hf://`. Raises StartupError."""
    path = text.partition("://")[2]
    path, _, revision = path.partition("@")
    if "/" in revision and path.count("/") == 1:
        # owner/repo@revision/path: a slash in this revision is written %2F.
        revision, _, rest = revision.partition("/")
        path = f"{path}/{rest}"
    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    return _checked(text, f"{owner}/{name}", unquote(file), unquote(revision) or MAIN, sha256)


def from_page(url: str, sha256: str | None) -> HubSource | None:
    """The file that an address of the hub means: its page or its download. None for any other address."""
    parts, hub = urlsplit(url), urlsplit(endpoint())
    if parts.netloc in HOSTS:
        path = parts.path
    elif (parts.scheme, parts.netloc) == (hub.scheme, hub.netloc) and parts.path.startswith(f"{hub.path}/"):
        path = parts.path.removeprefix(hub.path)
    else:
        return None
    match = _PAGE.fullmatch(path)
    if match is None or match["repo"].partition("/")[0] in ("datasets", "spaces"):
        return None
    return _checked(url, match["repo"], unquote(match["path"]), unquote(match["revision"]), sha256)


def _checked(text: str, repo: str, path: str, revision: str, sha256: str | None) -> HubSource:
    owner, _, name = repo.partition("/")
    if not all(_REPO_PART.fullmatch(part) for part in (owner, name)) or not path:
        raise StartupError(f"{text}: {EXPECTED}")
    if _REVISION.fullmatch(revision) is None or ".." in revision or "//" in revision:
        raise StartupError(f"{text}: {revision!r} cannot be a revision; a branch, a tag or a commit is one")
    return HubSource(repo, path, revision, sha256)


def endpoint() -> str:
    """Where the hub is, without a slash at its end. Raises StartupError for an HF_ENDPOINT that is no address."""
    text = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).strip().rstrip("/")
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("https", "http") and parts.hostname and not parts.query and "@" not in parts.netloc
    except ValueError:
        sound = False
    if not sound:
        raise StartupError(f"HF_ENDPOINT: expected an address such as {DEFAULT_ENDPOINT}")
    return text


def resolve_url(source: HubSource, revision: str | None = None) -> str:
    """The address that gives the file, or sends on to it."""
    return f"{endpoint()}/{source.repo}/resolve/{quote(revision or source.revision, safe='')}/{quote(source.path)}"


def token() -> str | None:
    """The token of the environment. Raises StartupError for one that cannot be sent; it is never part of a message."""
    for variable in TOKEN_VARIABLES:
        value = os.environ.get(variable, "").strip()
        if not value:
            continue
        if re.fullmatch(r"[!-~]+", value) is None:
            raise StartupError(f"{variable}: not a token: it has characters in it that none has, such as spaces")
        return value
    return None


def is_safe_for_token() -> bool:
    """Whether what is sent to the hub cannot be read on the way: https, or this machine."""
    parts = urlsplit(endpoint())
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
