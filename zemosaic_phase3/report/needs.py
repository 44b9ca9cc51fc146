"""Packages of the extra ``report``: what is missing is said at once, with the line that installs it."""

from __future__ import annotations

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.extras import missing, pip_install


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
    packages = missing("report", *modules)
    if packages:
        raise SpecError(f"{what} needs {' and '.join(packages)}: {pip_install(*packages)}")
