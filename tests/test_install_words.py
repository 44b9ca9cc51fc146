"""What pages and messages tell people to install is there, before anything of this project is published."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from zemosaic_phase3.extras import EXTRAS, install, missing, pip_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = PROJECT["optional-dependencies"]
OF_DEVELOPERS = {"dev", "docs", "nvrtc"}  # no message asks for them
ASKS_AN_INDEX = re.compile(r"""(?:pip3? install|--with|uv add|conda install)[^`\n]*?["' ](zemosaic[-_]phase3)\b(?!/)""")
OF_THE_CHECKOUT = re.compile(r"""pip install[^`\n]*["']?\.\[([\w,]+)\]""")


def name_only(requirement: str) -> str:
    return re.split(r"[<>=;! ]", requirement, maxsplit=1)[0]


def texts() -> Iterator[tuple[str, str]]:
    folders = ("zemosaic_phase3", "docs", "deploy", ".github", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*files, *ROOT.glob("*.md"), *ROOT.glob("*.py"), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        if path.suffix in (".py", ".md", ".ipynb", ".yml", ".yaml", ".toml", ".j2", "") and path.name != "CHANGELOG.md":
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def test_the_words_are_those_of_the_extras() -> None:
    assert {name: sorted(packages.values()) for name, packages in EXTRAS.items()} == {
        name: sorted(map(name_only, wanted)) for name, wanted in DECLARED.items() if name not in OF_DEVELOPERS
    }
    assert install("formats") == "pip install tifffile imagecodecs rawpy xisf"
    assert install("dask") == 'pip install "dask[distributed]" bokeh'


def test_nobody_is_sent_to_a_package_index_for_this_project() -> None:
    assert [(name, found[0]) for name, text in texts() for found in ASKS_AN_INDEX.finditer(text)] == []


@pytest.mark.parametrize("line", ['pip install "zemosaic-phase3[formats]"', "pip install -U zemosaic-phase3"])
def test_such_a_line_would_be_seen(line: str) -> None:
    assert ASKS_AN_INDEX.search(f"see `{line}`")
    assert not ASKS_AN_INDEX.search("pip install /path/to/zemosaic-phase3")


def test_extras_that_pages_name_exist() -> None:
    named = {
        (name, extra)
        for name, text in texts()
        for found in OF_THE_CHECKOUT.finditer(text)
        for extra in found[1].split(",")
    }
    assert {name for name, _ in named} >= {"README.md", "docs/install.md"}
    assert {(name, extra) for name, extra in named if extra not in {*DECLARED, "NAME"}} == set()


def test_what_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zemosaic_phase3.extras.find_spec", lambda name: None if name == "PIL" else object())
    assert missing("report") == ["pillow"]
    assert missing("report", "jinja2") == []
    assert pip_install(*missing("report", "PIL")) == "pip install pillow"
