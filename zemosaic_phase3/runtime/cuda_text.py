"""CUDA text: files beside the Python that they are twins of, joined into what a compiler is given.

A file names what it needs in lines ``#include "wing/name.cu"``, which are replaced by that file, once in a text. They
look like what a C compiler knows, so that editors and formatters understand them, but no compiler sees them: it would
have to know where this package lies.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from functools import cache
from typing import Final

PACKAGE: Final = __name__.partition(".")[0]
_INCLUDE: Final = re.compile(r'^#include "(.+)"\n', re.MULTILINE)


@cache
def _file(name: str) -> str:
    return importlib.resources.files(PACKAGE).joinpath(*name.split("/")).read_text(encoding="utf-8")


@cache
def joined(*names: str) -> str:
    """Return the text of files, ``wing/name.cu``, each with what it includes before it; nothing comes twice.

    Raises
    ------
    OSError
        The package was installed without a file.
    """
    seen: set[str] = set()

    def text_of(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(lambda found: text_of(found[1]), _file(name))

    return "".join(text_of(name) for name in names)


def constants(values: Mapping[str, int]) -> str:
    """Return the definitions of whole numbers that Python and CUDA text have in common."""
    return "".join(f"constexpr int {name} = {int(value)};\n" for name, value in values.items())
