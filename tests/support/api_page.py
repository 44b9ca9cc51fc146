"""The page docs/api.md, made of the docstrings of the public names: ``python tests/support/api_page.py`` writes it."""

from __future__ import annotations

import inspect
from pathlib import Path

import zemosaic_phase3 as zp

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def api_page() -> str:
    parts = ["# Python", "", "The public names, with their docstrings. Made by `python tests/support/api_page.py`.", ""]
    for name in sorted(set(zp.__all__) - {"__version__"}, key=str.lower):
        doc = inspect.getdoc(getattr(zp, name))
        assert doc, name
        parts += [f"## {name}", "", "```text", doc, "```", ""]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(api_page(), encoding="utf-8")
