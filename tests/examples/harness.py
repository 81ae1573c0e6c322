"""The examples as a person runs them: the installed `crucible`, against a Granville with real models."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import GRANVILLE, Daemon, environment

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CRUCIBLE = GRANVILLE.with_name("crucible")
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Shell:
    """Runs commands in a folder of its own, with a journal of its own, against one daemon."""

    folder: Path
    daemon: Daemon

    @property
    def environment(self) -> dict[str, str]:
        path = f"{GRANVILLE.parent}:/usr/local/bin:/usr/bin:/bin"
        return environment(self.folder) | {"GRANVILLE_SOCKET": str(self.daemon.socket), "PATH": path}

    def crucible(self, *arguments: str | Path, stdin: str = "") -> str:
        """What it prints on stdout; it has to end with 0."""
        return self.run([str(CRUCIBLE), *map(str, arguments)], stdin=stdin)

    def outputs(self, *arguments: str | Path, stdin: str = "") -> dict[str, Any]:
        """A run's outputs."""
        outputs: dict[str, Any] = json.loads(self.crucible("run", *arguments, "--json", stdin=stdin))
        return outputs

    def run(self, command: Sequence[str], stdin: str = "") -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, (
            f"{done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}\n{self.daemon.log[-4000:]}"
        )
        return done.stdout
