"""The `granville` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from granville.cli.program import Program

PROGRAM = Program("granville", "granville.cli.help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` when none is given) and return the exit status of granville.cli.exits."""
    return PROGRAM.main(argv)


if __name__ == "__main__":
    sys.exit(main())
