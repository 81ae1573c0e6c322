"""driver.json, and the names of drivers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import StartupError
from granville.hosting.manifest import (
    MAX_MANIFEST_BYTES,
    check_file,
    check_name,
    check_same,
    is_official,
    library_name,
    normal_platform,
    parse_manifest,
    read_manifest,
    this_platform,
)

GOOD = {"name": "acme-granville-tpu", "version": "1.0.2", "lib_name": "libtpu.so"}


def data(**fields: object) -> bytes:
    return json.dumps(GOOD | fields).encode()


def said(*, error: bytes) -> str:
    with pytest.raises(StartupError) as caught:
        parse_manifest(error)
    assert caught.value.message.startswith("driver.json: ")
    return caught.value.message


def test_the_format_as_it_is_about_is_read() -> None:
    manifest = parse_manifest(
        b'{"name": "granville-llama", "version": "0.1.0", "description": "llama.cpp", "platform": "darwin-arm64",'
        b' "lib_name": "libgranville_llama.dylib", "author": "somebody", "gpu": null}'
    )
    assert (manifest.name, manifest.platform, manifest.official) == ("granville-llama", "darwin-arm64", True)
    assert manifest.file(Path("/d")) == Path("/d/libgranville_llama.dylib")
    assert manifest.abi is None


def test_a_library_has_its_usual_name_where_none_is_given() -> None:
    for platform, name in (
        ("linux-x86_64", "libacme_granville_tpu.so"),
        ("darwin-arm64", "libacme_granville_tpu.dylib"),
        ("windows-x86_64", "acme_granville_tpu.dll"),
    ):
        assert library_name("acme-granville-tpu", platform) == name
        assert parse_manifest(data(lib_name="", platform=platform)).file_name == name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": None}, "$.name"),
        ({"version": 2}, "$.version"),
        ({"name": "tpu"}, "granville-<backend> for official drivers and <vendor>-granville-<name> for others"),
        ({"version": "1/2"}, "version: expected one such as 1.2.0"),
        ({"lib_name": "../libtpu.so"}, "lib_name: '../libtpu.so' is no file name"),
        ({"lib_name": "/lib/libc.so.6"}, "is no file name"),
        ({"lib_name": "lib\ntpu.so"}, "is no file name"),
        ({"lib_name": ".."}, "is no file name"),
        ({"platform": "linux"}, "platform: expected one such as"),
        ({"platform": "any"}, "any is for abi python"),
        ({"sha256": "ABC"}, "sha256: expected 64 hexadecimal digits"),
        ({"abi": "c3"}, "$.abi"),
        ({"abi": "python"}, 'abi python needs "module:Class"'),
        ({"abi": "python", "entry": "../evil:Class"}, 'abi python needs "module:Class"'),
        ({"abi": "c1", "entry": "module:Class"}, 'only with "abi": "python"'),
        ({"config": [1]}, "$.config"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, object], words: str) -> None:
    assert words in said(error=data(**fields))


def test_what_is_no_json_object_is_told(tmp_path: Path) -> None:
    for text in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"name": "granville-x"}'):
        said(error=text)
    assert "more than the" in said(error=b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(StartupError, match=r"No such file or directory; a driver's folder has a driver\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["granville-llama", "granville-llama-cuda", "acme-granville-tpu", "big-co-granville-x-2", "g-granville-0"]
)
def test_names_that_drivers_have(name: str) -> None:
    assert check_name(name) == name
    assert is_official(name) == name.startswith("granville-")


@pytest.mark.parametrize(
    "name",
    ["", "llama", "granville", "granville-", "-granville-x", "acme-granville", "Acme-granville-x", "acme_granville_x",
     "granville--x", "granville-x-", "../granville-x", "granville-x/..", "granville-x\n", "granville-\u0445",
     "a" * 60 + "-granville-x"],
)  # fmt: skip
def test_names_that_drivers_do_not_have(name: str) -> None:
    with pytest.raises(StartupError, match="name: "):
        check_name(name)


@given(st.text())
def test_a_name_is_always_safe_as_a_folder(name: str) -> None:
    try:
        check_name(name)
    except StartupError:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert "granville" in name


def test_platforms_have_one_spelling() -> None:
    assert normal_platform("linux-amd64") == "linux-x86_64"
    assert normal_platform("linux-arm64") == "linux-aarch64"
    assert normal_platform("darwin-aarch64") == "darwin-arm64"
    assert normal_platform(this_platform()) == this_platform()


def test_the_file_is_looked_at_before_it_is_used(tmp_path: Path) -> None:
    library = tmp_path / "libtpu.so"
    manifest = parse_manifest(data())
    with pytest.raises(StartupError, match=r"its file libtpu\.so is not in the folder"):
        check_file(manifest, tmp_path)
    library.write_bytes(b"code")
    assert check_file(manifest, tmp_path) == library
    assert check_file(parse_manifest(data(sha256=hashlib.sha256(b"code").hexdigest())), tmp_path) == library
    with pytest.raises(StartupError, match=r"its SHA-256 is 5694d08a.*, and driver\.json says 0000"):
        check_file(parse_manifest(data(sha256="0" * 64)), tmp_path)
    with pytest.raises(StartupError, match=f"is for plan9-mips and this machine is {this_platform()}"):
        check_file(parse_manifest(data(platform="plan9-mips")), tmp_path)


def test_a_file_that_leads_out_of_the_folder_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.so").write_bytes(b"code")
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "libtpu.so").symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(StartupError, match="is a link that leads out of the folder"):
        check_file(parse_manifest(data()), folder)


def test_a_driver_is_what_its_driver_json_says() -> None:
    manifest = parse_manifest(data())
    check_same(manifest, "acme-granville-tpu", "1.0.2", Path("/d"))
    for name, version, words in (
        (
            "acme-granville-gpu",
            "1.0.2",
            "name is 'acme-granville-tpu', and the driver itself says 'acme-granville-gpu'",
        ),
        ("acme-granville-tpu", "1.0.3", "version is '1.0.2', and the driver itself says '1.0.3'"),
    ):
        with pytest.raises(StartupError, match=words):
            check_same(manifest, name, version, Path("/d"))
