"""Which driver a name means, and drivers that are not what their driver.json says."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from granville.errors import StartupError
from granville.hosting.cabi_v1 import V1Driver
from granville.hosting.cabi_v2 import V2Driver
from granville.hosting.interface import DriverError, Finished, Generate, Message, ModelSpec, Token
from granville.hosting.locate import find_driver, installed, is_name
from tests.drivers import c_drivers


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return c_drivers.samples(tmp_path_factory.mktemp("echo"))


@pytest.fixture
def drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where drivers are installed."""
    monkeypatch.setenv("GRANVILLE_HOME", str(tmp_path))
    (tmp_path / "drivers").mkdir()
    return tmp_path / "drivers"


def refused(name: str) -> str:
    with pytest.raises(StartupError) as caught:
        find_driver(name)
    assert caught.value.message.startswith(f"--driver {name}: ")
    return caught.value.message


def test_a_folder_and_a_library_are_drivers(echo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(find_driver(str(echo / "v1")), V1Driver)
    assert isinstance(find_driver(str(echo / "v2" / "libgranville_echo_v2.so")), V2Driver)
    monkeypatch.chdir(echo / "v2")
    assert find_driver("./").name == "granville-echo-v2"
    assert find_driver("libgranville_echo_v2.so").name == "granville-echo-v2"


def test_an_installed_name_goes_before_an_entry_point(echo: Path, drivers: Path) -> None:
    shutil.copytree(echo / "v2", drivers / "granville-echo-v2")
    assert isinstance(find_driver("granville-echo-v2"), V2Driver)
    assert find_driver("granville-llama").name == "granville-llama"
    assert set(installed()) >= {"granville-echo-v2", "granville-llama"}
    assert f"installed are: {', '.join(installed())}" in refused("granville-nothing")
    shutil.copytree(echo / "v2", drivers / "granville-llama")
    assert "name is 'granville-echo-v2', in the folder of granville-llama" in refused("granville-llama")


def test_names_that_lead_nowhere(tmp_path: Path, drivers: Path) -> None:
    assert "there is no such file or folder" in refused(str(tmp_path / "none.so"))
    assert "cannot be read: No such file or directory; a driver's folder has a driver.json" in refused(f"{tmp_path}/")
    assert "no such driver is installed" in refused("..")
    assert "no such driver is installed" in refused("")
    assert "No module named 'no_such_module'" in refused("no_such_module:Driver")
    assert "this is no class" in refused("sys:maxsize")
    assert "lacks load(), name or version" in refused("pathlib:Path")


def test_only_plain_names_can_be_asked_for_from_outside() -> None:
    assert is_name("granville-llama")
    assert not any(map(is_name, ("", "os:system", "./x", "/x/y", "x.so", "..:..", "a/b", "C:x")))


def test_settings_of_a_driver_json_reach_the_driver(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.touch()
    library = c_drivers.build(c_drivers.TELLS, tmp_path / "tells" / "tells.so")
    schema = {"properties": {"depth": {"type": "integer"}}}
    folder = c_drivers.describe(
        library, name="granville-tells", version="1", config={"depth": 1, "width": 2}, config_schema=schema
    )
    driver = find_driver(str(folder))
    assert isinstance(driver, V2Driver)
    assert (vars(driver)["config"], vars(driver)["config_schema"]) == ({"depth": 1, "width": 2}, schema)
    model = driver.load(ModelSpec(file, options={"depth": 3}))
    assert model.info.description.endswith(' {"depth":3,"width":2}')
    model.close()
    folder = c_drivers.describe(c_drivers.broken("plain_symbols", tmp_path), config={"depth": 3})
    with pytest.raises(DriverError, match="depth: granville-broken takes no settings; it is of ABI v1"):
        find_driver(str(folder)).load(ModelSpec(file))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "granville-other"}, "name is 'granville-other', and the driver itself says 'granville-broken'"),
        ({"version": "2.0"}, "version is '2.0', and the driver itself says '1.0'"),
        ({"abi": "c2"}, '"abi": "c2", and it does not export granville_driver_vtable_v2'),
        ({"sha256": "0" * 64}, "and driver.json says 0000"),
        ({"lib_name": "libother.so"}, "its file libother.so is not in the folder"),
        ({"platform": "linux-riscv64"}, "the driver is for linux-riscv64 and this machine is"),
        ({"abi": "python", "entry": "driver:Driver"}, "its file driver.py is not in the folder"),
    ],
)
def test_a_driver_json_that_lies(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    folder = c_drivers.describe(c_drivers.broken("plain_symbols", tmp_path), **fields)
    assert words in refused(str(folder))


def test_a_driver_json_that_says_v1_of_a_v2_driver_lies(tmp_path: Path) -> None:
    folder = c_drivers.describe(c_drivers.broken("step_fails", tmp_path), abi="c1")
    assert "it does not export granville_driver_vtable, nor the functions of v1" in refused(str(folder))


def test_a_driver_json_that_is_true(tmp_path: Path) -> None:
    library = c_drivers.broken("plain_symbols", tmp_path)
    folder = c_drivers.describe(library, sha256=hashlib.sha256(library.read_bytes()).hexdigest(), abi="c1")
    assert find_driver(str(library)).name == find_driver(str(folder)).name == "granville-broken"


def test_the_sample_in_python_runs_from_its_folder(tmp_path: Path) -> None:
    before = list(sys.path)
    driver = find_driver(str(c_drivers.ECHO / "python"))
    assert (driver.name, driver.version) == ("granville-echo-py", "1.0.0")
    assert sys.path == before
    assert "echo_driver" not in sys.modules
    file = tmp_path / "model.bin"
    file.touch()
    model = driver.load(ModelSpec(file))
    for stop, said, reason in (((), ["one", " two"], "length"), (("o t", "ee"), ["one", " tw"], "stop")):
        model.submit(Generate(f"stop {stop}", (Message("user", "one two three"),), max_tokens=2, stop=stop))
        events = [event for _ in range(3) for event in model.step(None)]
        assert [event.text for event in events if isinstance(event, Token)] == said
        assert isinstance(events[-1], Finished)
        assert events[-1].finish_reason == reason


DRIVER = """
from . import words
from .words import VERSION

class Driver:
    name = "granville-{}"
    version = VERSION
    config = {{"mine": 1}}
    def load(self, spec):
        return dict(spec.options)
"""


def test_two_folders_may_have_modules_of_one_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "driver.py").write_text(DRIVER.format(name))
        (folder / "words.py").write_text(f"VERSION = '1.{name}'")
        manifest = {"name": f"granville-{name}", "version": f"1.{name}", "abi": "python", "entry": "driver:Driver"}
        (folder / "driver.json").write_text(json.dumps(manifest | {"config": {"theirs": 2}}))
    assert [find_driver(str(tmp_path / name)).version for name in ("one", "two")] == ["1.one", "1.two"]
    driver = find_driver(str(tmp_path / "one"))
    assert driver.config == {"mine": 1}  # type: ignore[attr-defined]  # what its code says stands
    options = {"depth": 1}
    assert driver.load(ModelSpec(tmp_path, options=options)) == {"theirs": 2, "depth": 1}  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_module", "driver.py: cannot be imported: ModuleNotFoundError: No module named"),
        ("def (", "driver.py: cannot be imported: SyntaxError"),
        ("1 / 0", "driver.py: cannot be imported: ZeroDivisionError"),
        ("x = 1", "driver.py: has no Driver, which entry 'driver:Driver' names"),
        ("class Driver: pass", "lacks load(), name or version"),
        ("class Driver:\n  name = 'granville-x'\n  version = '2'\n  def load(self, spec): ...", "itself says '2'"),
    ],
)
def test_folders_in_python_that_are_no_driver(tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "driver.py").write_text(code)
    manifest = {"name": "granville-x", "version": "1", "abi": "python", "entry": "driver:Driver"}
    (tmp_path / "driver.json").write_text(json.dumps(manifest))
    assert words in refused(str(tmp_path))
