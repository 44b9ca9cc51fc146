"""Packages of the extra ``report``: what is missing is said at once, with the line that installs it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from zemosaic_phase3.errors import SpecError

PACKAGES: Final = {"jinja2": "jinja2", "matplotlib": "matplotlib", "PIL": "pillow"}
"""Names to import, and to install."""


def require(what: str, *modules: str) -> None:
    """Make sure that packages are there, before anything is read or imported.

    Parameters
    ----------
    what : str
        The option, or whatever was asked for, as the user knows it.
    modules : str
        Names to import; none: all of the extra.

    Raises
    ------
    SpecError
        Some are missing; one line, with the command that installs them.
    """
    missing = [PACKAGES[name] for name in modules or PACKAGES if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise SpecError(f"{what} needs {names}: pip install {' '.join(missing)}")
