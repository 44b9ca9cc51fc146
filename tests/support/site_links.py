"""A hook of MkDocs: what pages of ``docs/`` link to outside that folder, figures of benchmarks say, is in the site.

In the checkout ``../benchmarks/results/weights.md`` is a link that works; in a site made of ``docs/`` alone it is dead.
Linked pages become pages of the site, other files are copied as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
FOLDER = "checkout"  # in the site


def linked(page: str) -> set[str]:
    """Return the files outside ``docs/`` that the text of a page of it links to."""
    return {found[1] for found in OUTSIDE.finditer(page)}


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File, InclusionLevel

    pages = list(Path(config["docs_dir"]).glob("*.md"))
    for name in sorted(set().union(*(linked(page.read_text(encoding="utf-8")) for page in pages))):
        source = ROOT / name
        if source.is_dir():
            content = "\n".join(["# " + name, "", *(f"- `{path.name}`" for path in sorted(source.iterdir()))])
            file = File.generated(config, f"{FOLDER}/{name}/index.md", content=content)
        else:
            file = File.generated(config, f"{FOLDER}/{name}", abs_src_path=str(source))
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001 - as it is called
    if page.file.src_uri.startswith(f"{FOLDER}/"):
        return re.sub(r"\]\((?!https?:|#)[^)]*\)", "]", markdown)  # they lead on into the checkout
    return OUTSIDE.sub(lambda found: f"]({FOLDER}/{found[1].rstrip('/')}{found[2] or ''})", markdown)
