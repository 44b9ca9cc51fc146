"""The pages of docs/: all in the navigation, no link that leads nowhere, the API as the docstrings have it."""

from __future__ import annotations

import re
from pathlib import Path

from api_page import PAGE, api_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^\s*```.*?^\s*```", re.MULTILINE | re.DOTALL)


def anchor_of(title: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower())


def dead_links(page: Path) -> list[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path) if path else page
        if not target.exists():
            dead.append(link)
        elif anchor and target.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
            if anchor not in {anchor_of(title) for title in titles}:
                dead.append(link)
    return dead


def test_the_navigation_names_every_page() -> None:
    named = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md"))


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    assert {page.name: dead for page in pages if (dead := dead_links(page))} == {}


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#another) [c](gone.md)\n", encoding="utf-8")
    assert dead_links(page) == ["#another", "gone.md"]


def test_the_api_page_is_that_of_the_docstrings() -> None:
    assert PAGE.read_text(encoding="utf-8") == api_page(), "python tests/support/api_page.py writes it anew"
