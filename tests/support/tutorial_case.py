"""Commands of the pages of ``docs/``, as their readers type them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def commands_of(page: str) -> list[list[str]]:
    """Return the arguments of every ``zemosaic-phase3`` in the shell blocks of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["zemosaic-phase3"]]
