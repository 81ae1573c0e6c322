"""`granville driver`: what there is to do with drivers; and `install`, `list`, `remove`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from granville.cli.terminal import note, printable
from granville.hosting.accel import Accel

if TYPE_CHECKING:
    from granville.hosting.store import Bundled, Installed

PIPE_COLUMNS = 5000
"""Into a pipe or a file a driver is one line, however long its source."""

Registries = Annotated[
    list[str] | None,
    Parameter(
        name="--registry",
        negative="",
        help="Ask this registry in place of those in config.toml: its name there, or a URL or path. May be repeated.",
    ),
]


def driver() -> None:
    """Drivers are what runs models: install, list and remove them, publish one of your own, see whether it is right.

    A driver is a folder with a driver.json, in `~/.granville/drivers`; `granville serve MODEL -d NAME` uses it. Those
    that come as Python packages, as granville-llama does, are there without being installed. Names are
    `granville-<backend>` for official drivers and `<vendor>-granville-<name>` for all others.

    `granville driver` alone lists the commands, and each has a `--help`.
    """
    from granville.cli.help import COMMANDS

    rows = [command for command in COMMANDS if command.name.startswith("driver ")]
    width = max(len(f"{row.name} {row.arguments}") for row in rows)
    print("\n".join(f"granville {f'{row.name} {row.arguments}':<{width}}  {row.summary}" for row in rows))


def install(
    what: Annotated[str, Parameter(help="A name, NAME==VERSION, URL, archive or folder.")],
    /,
    *,
    sha256: Annotated[str | None, Parameter(help="The archive's SHA-256, 64 hex digits; a URL needs one.")] = None,
    unverified: Annotated[
        bool, Parameter(negative="", show_default=False, help="Take a URL without a hash, and say which it has.")
    ] = False,
    force: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Also again, an older version, or a bundled driver's name."),
    ] = False,
    registry: Registries = None,
    accel: Annotated[
        Accel | None,
        Parameter(help="For granville-llama: build llama.cpp anew for this, some minutes."),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", show_default=False, help="With --accel: only say what would be done.")
    ] = False,
    quiet: Annotated[bool, Parameter(negative="", show_default=False, help="Show no progress.")] = False,
) -> int | None:
    """Install a driver, or another version of it.

    WHAT is one of

    - a name of a registry, such as `acme-granville-tpu`, or with a version `acme-granville-tpu==1.2`;
    - `https://host/path/archive.tar.gz#sha256=HEX`, or the URL with `--sha256 HEX`;
    - an archive (tar.gz, tar.xz, zip) or a folder with a driver.json, as a path with a slash: `./my-driver`.

    The build for this system and processor is taken, its hash is checked before it is unpacked, and what is installed
    under the name is replaced in one step; a driver that a daemon uses is not. Registries are those of
    `~/.granville/config.toml`, in their order: a name belongs to the first that has it.

    `granville driver install granville-llama --accel cuda` builds the llama.cpp of the bundled driver for a GPU. It is
    compiled apart and tried, and only then takes the place of the one that is there.
    """
    if accel is not None or dry_run:
        from granville.cli.accel import install_accelerated

        return install_accelerated(what, accel, dry_run=dry_run)
    import trio

    from granville.fetch.progress import progress_bar
    from granville.hosting.store import DriverStore
    from granville.registry.install import Installer
    from granville.registry.settings import registries
    from granville.registry.wanted import ByName, parse_wanted

    wanted = parse_wanted(what, sha256, unverified=unverified)
    if isinstance(wanted, ByName) and not force and (there := _bundled(wanted.name)):
        print(
            f"{there.name} {there.version} is bundled: it came with the Python package {there.package}, nothing to do"
        )
        return None
    store = DriverStore()
    with progress_bar(quiet=quiet) as bar:
        installer = Installer(store=store, registries=registries(registry or ()), say=note, progress=bar, force=force)
        outcome = trio.run(installer.install, wanted)
    if not outcome.changed:
        print(f"{outcome.name} {outcome.version} is installed already; --force installs it again")
        return None
    before = f", in place of {outcome.before}" if outcome.before else ""
    print(f"{outcome.name} {outcome.version} is installed{before}: {outcome.folder}")
    return None


def list_drivers(
    *,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON for programs.")
    ] = False,
) -> None:
    """List the drivers that are installed, and those that are bundled.

    Backend is how a driver is called: c1 and c2 are versions of the C interface, c one of the two, python a class. A
    bundled driver came with a Python package, the others from where source says.
    """
    from granville.hosting.store import DriverStore, bundled

    store = DriverStore()
    installed = store.installed()
    rows = [_row(one) for one in installed] + [_bundled_row(one) for one in bundled()]
    if as_json:
        print(json.dumps({"folder": str(store.folder), "drivers": rows}, indent=2))
        return
    if not installed:
        print("No drivers")
    _print_table(rows)


def remove(name: Annotated[str, Parameter(help="The driver's name, as `granville driver list` shows it.")], /) -> None:
    """Remove a driver that was installed.

    One that a running daemon uses stays, and so do bundled ones, which are part of a Python package.
    """
    import difflib

    import trio

    from granville.errors import StartupError
    from granville.fetch.place import why_not_written
    from granville.hosting.store import DriverStore

    store = DriverStore()
    known = {one.name for one in store.installed()}
    if name not in known:
        if there := _bundled(name):
            raise StartupError(f"{name} is bundled: it is part of the Python package {there.package} and stays with it")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"installed are: {', '.join(sorted(known)) or 'none'}"
        raise StartupError(f"no driver {printable(name)} is installed; {hint}")

    async def main() -> None:
        async with store.changing(name):
            await store.remove(name)

    try:
        store.clear_leftovers()
        trio.run(main)
    except OSError as error:
        raise why_not_written(store.place(name), error) from error
    print(f"{name} is removed")


def _bundled(name: str) -> Bundled | None:
    from granville.hosting.store import bundled

    return next((one for one in bundled() if one.name == name), None)


def _row(one: Installed) -> dict[str, Any]:
    manifest, record = one.manifest, one.record
    return {
        "name": one.name,
        "version": one.version,
        "backend": (manifest.abi or "c") if manifest else None,
        "capabilities": list(manifest.capabilities) if manifest else [],
        "description": manifest.description if manifest else None,
        "bundled": False,
        "source": record.source if record else None,
        "registry": record.registry if record else None,
        "sha256": record.sha256 if record else None,
        "installed_at": record.installed_at if record else None,
        "size_bytes": one.size_bytes,
        "path": str(one.folder),
        "problem": one.problem,
    }


def _bundled_row(one: Bundled) -> dict[str, Any]:
    from granville.registry.schema import embedded

    entry = embedded().drivers.get(one.name)
    return {
        "name": one.name,
        "version": one.version,
        "backend": "python",
        "capabilities": list(entry.capabilities) if entry else [],
        "description": entry.description if entry else None,
        "bundled": True,
        "source": f"Python package {one.package}",
        "registry": None,
        "sha256": None,
        "installed_at": None,
        "size_bytes": None,
        "path": None,
        "problem": None,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "VERSION", "BACKEND", "CAPABILITIES"):
        table.add_column(title, no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("SOURCE", overflow="fold")
    for row in rows:
        source = row["source"] or "put there by hand"
        if row["bundled"]:
            source = f"bundled, {source}"
        elif row["registry"]:
            source = f"registry {row['registry']}, {source}"
        cells = (
            row["name"],
            row["version"] or "-",
            row["backend"] or "-",
            ", ".join(row["capabilities"]) or "-",
            "-" if row["size_bytes"] is None else _size(row["size_bytes"]),
            row["problem"] or source,
        )
        # Text, not markup, and no control characters: a driver says its name itself.
        table.add_row(*(Text(printable(cell)) for cell in cells), style="red" if row["problem"] else None)
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(table)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
