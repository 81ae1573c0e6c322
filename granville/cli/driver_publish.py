"""`granville driver publish` and `keygen`: a driver of your own in a registry of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def publish(
    folder: Annotated[Path, Parameter(help="The driver's folder, with its driver.json.")],
    /,
    *,
    to: Annotated[Path, Parameter(help="The folder of the registry; it is made when it is not there.")],
    base_url: Annotated[
        str | None, Parameter(help="Where that folder can be read. Without it the URLs are relative to registry.json.")
    ] = None,
    sign: Annotated[Path | None, Parameter(help="Sign the index with the key in this file.")] = None,
    license: Annotated[str | None, Parameter(help="The driver's licence, an SPDX expression.")] = None,
    repo: Annotated[str | None, Parameter(help="Where its source is.")] = None,
    force: Annotated[
        bool, Parameter(negative="", show_default=False, help="Replace a build that was published with other bytes.")
    ] = False,
) -> None:
    """Pack a driver as a release, and enter it into a registry that others can install from.

    The archive goes to `TO/NAME/VERSION/NAME-PLATFORM.tar.gz`, with one folder at its top, and `TO/registry.json` gets
    its URL, hash and size. Serve that folder by any web server, or share it as it is: `--registry TO/registry.json`.
    Name, version, platform and abi are those of driver.json. Hidden files and `__pycache__` stay behind. The same
    folder gives the same archive, byte for byte, and a build that was published is not changed.

    With `--sign` the index gets a signature beside it, `registry.json.sig`; whoever has its public key in their
    config.toml installs from this registry only what you have signed. `granville driver keygen` makes a key.
    """
    import trio

    from granville.registry.release import Publisher
    from granville.registry.signing import Signer

    publisher = Publisher(
        to=to.expanduser().absolute(),
        base_url=base_url,
        signer=None if sign is None else Signer(sign.expanduser()),
        license=license,
        repo=repo,
        force=force,
    )
    release = trio.run(publisher.publish, folder.expanduser().absolute())
    print(f"{release.name} {release.version} for {release.platform}: {release.archive}")
    print(f"SHA-256 {release.sha256}, {release.size_bytes} bytes")
    if release.public_key:
        print(f"{release.index} is signed by {release.public_key}")
    else:
        print(f"{release.index} is not signed")


def keygen(file: Annotated[Path, Parameter(help="Where the private key goes; a new file.")], /) -> None:
    """Make a key to sign a registry with, and print its public half.

    The private key is Ed25519 in PEM, and only you can read the file: keep it, and keep a copy of it where a thief of
    this machine does not find it. The line that is printed is what others put beside the registry's URL in their
    config.toml.
    """
    from granville.registry.signing import make_key

    print(f'key = "{make_key(file.expanduser()).public_key}"')
