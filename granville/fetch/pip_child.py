"""pip, for a parent that may be killed: `python -m granville.fetch.pip_child ARGUMENTS`.

It ends when its standard input does, so that it does not write on into a folder that nobody watches any longer.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def _end_with_the_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.argv[0] = "pip"
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
