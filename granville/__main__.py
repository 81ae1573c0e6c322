"""`python -m granville` is `granville`."""

import sys

from granville.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
