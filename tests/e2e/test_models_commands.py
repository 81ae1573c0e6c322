"""`granville download` and `granville models list|show|remove|verify` as a person types them."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drivers.tiny_gguf import noise
from tests.e2e.harness import running
from tests.e2e.site import DATA, Site, serving

DIGEST = hashlib.sha256(DATA).hexdigest()
COMMAND = [sys.executable, "-m", "granville.cli.main"]
NO_DAEMON = "/tmp/granville-no-daemon.sock"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of its own."""
    return tmp_path


def granville(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=os.environ | {"GRANVILLE_HOME": str(home), "GRANVILLE_SOCKET": NO_DAEMON} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def on_a_terminal(home: Path, *arguments: str, typed: bytes = b"") -> tuple[int, str]:
    """The exit status, and all that a terminal showed."""
    outside, inside = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=os.environ
        | {"GRANVILLE_HOME": str(home), "GRANVILLE_SOCKET": NO_DAEMON, "TERM": "xterm", "COLUMNS": "200"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    os.write(outside, typed)
    shown = drain(outside)
    return process.wait(timeout=60), shown


def drain(terminal: int) -> str:
    written = b""
    with os.fdopen(terminal, "rb", buffering=0) as file:
        try:
            while block := file.read(4096):
                written += block
        except OSError:
            return written.decode()  # EIO: Linux says so when the other end of a pseudo-terminal is closed
    return written.decode()


def put(home: Path, name: str = "tiny/own.gguf") -> Path:
    path = home / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return noise(path)


def test_unverified_prints_the_hash_that_asks_for_the_same_bytes(site: Site, home: Path) -> None:
    refused = granville(home, "download", site.url)
    assert refused.returncode == 1
    assert "needs its SHA-256" in refused.stderr
    assert "--unverified" in refused.stderr
    assert site.ranges == []

    done = granville(home, "download", f"{site.url}?key=hunter2", "--unverified")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == DATA
    assert f"{site.url}#sha256={DIGEST}" in done.stderr
    assert "hunter2" not in done.stderr

    again = granville(home, "download", f"{site.url}?key=hunter2", "--unverified")
    pinned = granville(home, "download", f"{site.url}#sha256={DIGEST}")
    assert again.stdout == pinned.stdout == done.stdout
    assert len(site.ranges) == 1


def test_ctrl_c_on_a_terminal_says_what_is_kept(site: Site, home: Path) -> None:
    site.plan = [site.dribble]
    outside, inside = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "download", f"{site.url}#sha256={DIGEST}"],
        env=os.environ | {"GRANVILLE_HOME": str(home), "TERM": "xterm", "COLUMNS": "200"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    part = home / "models" / f"sha256-{DIGEST[:16]}" / "model.gguf.part"
    assert site.started.wait(30)
    shown = b""
    while b"1.0/3.0 MB" not in shown:  # the bar: size, rate, time left
        shown += os.read(outside, 4096)
    process.send_signal(signal.SIGINT)
    rest = drain(outside)
    assert process.wait(timeout=30) == 130
    assert re.search(r"1\.0/3\.0 MB\S* \S*([0-9.]+ [kMG]B/s|\?)\S* \S*([0-9]+:[0-9:]+|-:--:--)", shown.decode() + rest)
    assert "stopped; 1 of 3 MB of model.gguf are kept, and the same command goes on" in rest
    assert part.stat().st_size == 1_000_000

    listed = granville(home, "models", "list")
    assert "unfinished: " in listed.stdout
    assert "1 of 3 MB" in listed.stdout
    (left,) = json.loads(granville(home, "models", "list", "--json").stdout)["unfinished"]
    assert left == {
        "path": str(part.with_name("model.gguf")),
        "size_bytes": 1_000_000,
        "total_bytes": len(DATA),
        "source": site.url,
        "under_way": False,
    }
    site.go_on.set()
    done = granville(home, "download", f"{site.url}#sha256={DIGEST}")
    assert (done.returncode, done.stderr) == (0, "")
    assert site.ranges[-1] == "bytes=1000000-"
    assert "unfinished" not in granville(home, "models").stdout


def test_unfinished_downloads_are_removed_but_not_those_under_way(site: Site, home: Path) -> None:
    site.plan = [site.dribble]
    url = f"{site.url}#sha256={DIGEST}"
    with subprocess.Popen(
        [*COMMAND, "download", url], env=os.environ | {"GRANVILLE_HOME": str(home)}, stdout=subprocess.DEVNULL
    ) as process:
        part = home / "models" / f"sha256-{DIGEST[:16]}" / "model.gguf.part"
        assert site.started.wait(30)
        while not part.exists():
            assert process.poll() is None
        assert "being fetched: " in granville(home, "models").stdout
        kept = granville(home, "models", "remove", "--unfinished", "--yes")
        assert "is being fetched; it stays" in kept.stderr
        assert part.exists()
        process.kill()
    asked = granville(home, "models", "remove", "--unfinished")
    assert asked.returncode == 1
    assert "--yes" in asked.stderr
    assert part.exists()
    done = granville(home, "models", "remove", "--unfinished", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(home / "models") == []
    assert granville(home, "models", "remove", "--unfinished").stdout == "there is nothing unfinished\n"


def test_show(home: Path) -> None:
    path = put(home)
    done = granville(home, "models", "show", "own", "--slots", "2", "--context-size", "1024")
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    assert str(path) in lines["file"]
    assert "llama, 2 layers of 64" in lines["architecture"]
    assert "yes; it has no words for tools" in lines["chat template"]
    assert "llama, 262 tokens" in lines["tokenizer"]
    assert "not known" in lines["SHA-256"]
    assert "memory for 2 slots of 1024 tokens" in done.stdout
    for row in ("weights", "KV", "scratch", "total"):
        assert row in lines
    assert "fits" in done.stdout

    told = json.loads(granville(home, "models", "show", "own", "--slots", "2", "--json").stdout)
    (need,) = told["memory"]
    # Two layers, 64 wide, two heads of keys and of values, two bytes each.
    assert need["kv_bytes"] == 2 * 4096 * (2 * 64 * 2 * 2)
    assert need["total_bytes"] == need["weights_bytes"] + need["kv_bytes"] + need["scratch_bytes"]
    assert told["header"]["context_length"] == 8192
    assert told["parameters"] == sum(told["parameters_by_format"].values())


def test_show_says_what_would_fit(home: Path) -> None:
    put(home)
    done = granville(home, "models", "show", "own", "--slots", "100000000")
    assert done.returncode == 0
    assert "does not fit" in done.stdout
    assert "What would fit: --slots" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "nope"], "no model nope"),
        (["show", "smollm2"], "smollm2 is not on this disk; `granville download smollm2` fetches it"),
        (["show", "hf://owner/repo/m.gguf"], "is not on this disk"),
        (["show", "own", "--slots", "0"], "--slots: must be at least 1"),
        (["show", "own", "--context-size", "-1"], "--context-size: must not be negative"),
        (["verify", "smollm2"], "smollm2 is not on this disk"),
        (["remove", "smollm2", "--yes"], "there is nothing to remove"),
        (["remove"], "name one model, or give --unfinished"),
        (["remove", "own", "--unfinished"], "name one model, or give --unfinished"),
        (["remove", "own"], "there is nobody to ask; --yes"),
        (["lst"], "unknown command 'models lst'; did you mean `granville models list`?"),
    ],
)
def test_an_error_is_one_line(home: Path, arguments: list[str], says: str) -> None:
    path = put(home)
    done = granville(home, "models", *arguments)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert says in line
    assert path.exists()


def test_remove_takes_all_that_belongs_to_a_model(home: Path) -> None:
    path = put(home)
    neighbour = put(home, "tiny/other.gguf")
    for name in ("own.tuned.gguf", "own.tuned.json", ".own.gguf.verified", "own.gguf.part", ".own.gguf.part.json"):
        path.with_name(name).write_bytes(b"{}")
    done = granville(home, "models", "remove", "own", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("removed own.tuned.gguf, own.tuned.json, own.gguf (")
    assert os.listdir(path.parent) == [neighbour.name]
    assert granville(home, "models", "remove", str(neighbour), "--yes").returncode == 0
    assert os.listdir(home / "models") == []


def test_remove_asks_on_a_terminal(home: Path) -> None:
    path = put(home)
    status, shown = on_a_terminal(home, "models", "remove", "own", typed=b"n\n")
    assert (status, path.exists()) == (1, True)
    assert "Remove own.gguf from" in shown
    assert "nothing is removed" in shown
    status, shown = on_a_terminal(home, "models", "remove", "own", typed=b"y\n")
    assert (status, path.exists()) == (0, False)


def test_remove_leaves_what_is_elsewhere(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "mine.gguf"
    put(home)
    noise(elsewhere)
    done = granville(home, "models", "remove", str(elsewhere), "--yes")
    assert done.returncode == 1
    assert "only models there are removed" in done.stderr
    link = home / "models" / "linked"
    link.symlink_to(elsewhere.parent)
    assert granville(home, "models", "remove", str(link / "mine.gguf"), "--yes").returncode == 1
    assert elsewhere.exists()


def test_remove_refuses_what_a_daemon_serves(home: Path, folder: Path) -> None:
    path = put(home)
    with running(folder, model=path) as daemon:
        done = granville(home, "models", "remove", "own", "--yes", "--socket", str(daemon.socket))
        assert done.returncode == 1
        assert f"own.gguf is served as {daemon.status()['models'][0]['id']} at {daemon.socket}" in done.stderr
        assert path.exists()
        assert daemon.stop() == 0
    assert granville(home, "models", "remove", "own", "--yes", "--socket", str(daemon.socket)).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells who has a file mapped")
def test_remove_refuses_what_a_process_has_mapped(home: Path) -> None:
    path = put(home)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        done = granville(home, "models", "remove", "own", "--yes")
    assert done.returncode == 1
    assert f"own.gguf is in use by process {os.getpid()}" in done.stderr
    assert path.exists()


def test_verify(site: Site, home: Path) -> None:
    (own, *_) = (put(home),)
    site.data = own.read_bytes()
    digest = hashlib.sha256(site.data).hexdigest()
    fetched = Path(granville(home, "download", f"{site.url}#sha256={digest}").stdout.strip())
    done = granville(home, "models", "verify")
    assert done.returncode == 0, done.stdout
    assert f"ok     model: {digest}, as it was when it was fetched" in done.stdout
    assert f"ok     own: {digest}, sound, but nobody has said" in done.stdout

    rotten = bytearray(site.data)
    rotten[-1] ^= 1
    before = fetched.stat()
    fetched.write_bytes(rotten)
    os.utime(fetched, ns=(before.st_atime_ns, before.st_mtime_ns))  # as bits rot: nothing else has changed
    done = granville(home, "models", "verify", "--json")
    assert done.returncode == 1
    assert "wrong: model" in done.stderr
    verdicts = {verdict["name"]: verdict for verdict in json.loads(done.stdout)}
    assert "is damaged or another one" in verdicts["model"]["problem"]
    assert verdicts["own"]["problem"] is None
    assert granville(home, "models", "verify", "own").returncode == 0
    # What is wrong is no longer taken for verified: it is fetched again.
    assert granville(home, "download", f"{site.url}#sha256={digest}").returncode == 0
    assert fetched.read_bytes() == site.data


def test_verify_finds_a_file_that_was_cut_off(home: Path) -> None:
    path = put(home)
    path.write_bytes(path.read_bytes()[:-5000])
    done = granville(home, "models", "verify")
    assert done.returncode == 1
    assert done.stdout.startswith("WRONG  own: ")
    assert "the file was cut off" in done.stdout


def test_verify_shows_progress_on_a_terminal_and_nothing_when_quiet(home: Path) -> None:
    put(home)
    status, shown = on_a_terminal(home, "models", "verify")
    assert status == 0
    assert "verifying own.gguf" in shown
    status, shown = on_a_terminal(home, "models", "verify", "--quiet")
    assert status == 0
    assert "verifying" not in shown
