"""A working start for a new driver: a sample under another name, with what builds and checks it."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from granville import __version__
from granville.errors import StartupError
from granville.hosting.cabi import header_path
from granville.hosting.manifest import MANIFEST, check_name
from granville.hosting.samples import SampleAbi, sample_path

START = Path(__file__).parent / "start"
FIRST_VERSION = "0.1.0"
_PLACE = re.compile("@([A-Z_]+)@")


def write_driver(name: str, abi: SampleAbi, parent: Path) -> Path:
    """Make the folder `parent`/`name`, whole or not at all. Raises StartupError for a name against the rules, and for
    a folder that is there already."""
    check_name(name)
    target = parent / name
    if os.path.lexists(target):
        raise StartupError(f"{target}: is there already; choose another name or --dir, nothing was changed")
    files = driver_files(name, abi)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        try:
            for file, text in files.items():
                (made / file).write_text(text)
            made.chmod(0o755)
            made.rename(target)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise StartupError(f"{target}: cannot be made: {error.strerror}") from None
    return target


def driver_files(name: str, abi: SampleAbi) -> dict[str, str]:
    """The files of a new driver, by name."""
    stem = name.replace("-", "_")
    title = "".join(word.capitalize() for word in name.rpartition("granville-")[2].split("-"))
    places = {
        "NAME": name,
        "STEM": stem,
        "CLASS": title if title[0].isalpha() else f"Driver{title}",
        "VERSION": FIRST_VERSION,
        "DESCRIPTION": "Answers with its prompt",
        "ABI_NUMBER": abi.removeprefix("c"),
        "GRANVILLE_VERSION": __version__,
    }
    manifest = {"name": name, "version": FIRST_VERSION, "description": places["DESCRIPTION"], "abi": abi}
    source = sample_path(abi).read_text()
    if abi == "python":
        manifest |= {"platform": "any", "entry": f"{stem}:{places['CLASS']}Driver"}
        code = {f"{stem}.py": _renamed_python(source, places)}
    else:
        code = {f"{stem}.c": _renamed_c(source, places), header_path().name: header_path().read_text()}
    folder = START / ("python" if abi == "python" else "c")
    others = {path.name.removesuffix(".in"): path.read_text() for path in [*folder.glob("*.in"), *START.glob("*.in")]}
    others[".gitignore"] = others.pop("gitignore")
    filled = {file: _PLACE.sub(lambda place: places[place[1]], text) for file, text in others.items()}
    return {MANIFEST: json.dumps(manifest, indent=2) + "\n", **code, **filled}


def _renamed_c(source: str, places: dict[str, str]) -> str:
    for symbol, value in (("NAME", places["NAME"]), ("VERSION", places["VERSION"])):
        source, count = re.subn(f'^#define {symbol} ".*"$', f'#define {symbol} "{value}"', source, flags=re.MULTILINE)
        assert count == 1, symbol
    return source


def _renamed_python(source: str, places: dict[str, str]) -> str:
    said = f'name, version = "{places["NAME"]}", "{places["VERSION"]}"'
    source, count = re.subn('name, version = ".*", ".*"', said, source)
    assert count == 1
    return re.sub(r"\bEcho(Model|Driver)\b", rf"{places['CLASS']}\1", source)
