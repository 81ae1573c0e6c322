"""Every piece of docs/crucible.md runs, in the order of the page, as its commands say."""

from __future__ import annotations

import re

from tests.examples.harness import ROOT, Shell

PAGE = ROOT / "docs" / "crucible.md"


def test_the_page_runs_from_top_to_bottom(shell: Shell) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    printed = {}
    for language, text in blocks:
        if language in ("yaml", "python"):
            name = re.match(r"# (\S+)\n", text)
            assert name, f"a file's name has to be the first line: {text[:60]}"
            (shell.folder / name[1]).write_text(text)
        elif language == "bash":
            for command in text.strip().splitlines():
                printed[command] = shell.run(["bash", "-c", command])
        else:
            assert language == "sh", "sh is for what a person does once, beside the page"
    assert len(printed) >= 12
    assert "my-run" in printed["crucible runs list"]
    assert "greet" in printed["crucible runs show my-run"]
    stock = next(out for command, out in printed.items() if "stock.yaml" in command)
    assert ("article: rope" in stock and "pieces: 12" in stock) or (
        "article: lantern" in stock and "pieces: 3" in stock
    )
