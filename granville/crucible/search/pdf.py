"""The pages of a PDF file as a JSON list of texts: `python -m granville.crucible.search.pdf FILE`, a process of its own
that may be killed."""

from __future__ import annotations

import json
import logging
import resource
import sys

MAX_PAGES = 2000
MAX_MEMORY_BYTES = 2 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    logging.disable()
    import pypdf

    pages = pypdf.PdfReader(sys.argv[1]).pages
    texts = [page.extract_text() for page in pages[:MAX_PAGES]]
    json.dump([text.encode(errors="replace").decode() for text in texts], sys.stdout)


if __name__ == "__main__":
    main()
