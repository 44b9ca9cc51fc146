"""What to install for a part that needs more packages: the one place that words it.

A message names the packages themselves. So the command works on every machine, with or without a checkout at hand, and
does not rest on a package index knowing the name of this program.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final, Literal

ExtraName = Literal[
    "completion", "cuda12", "cuda13", "dask", "formats", "mosaic", "remote", "report", "series", "watch"
]

EXTRAS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "completion": {"shtab": "shtab"},
        "cuda12": {"cupy": "cupy-cuda12x"},
        "cuda13": {"cupy": "cupy-cuda13x"},
        "dask": {"distributed": "dask[distributed]", "bokeh": "bokeh"},
        "formats": {"tifffile": "tifffile", "imagecodecs": "imagecodecs", "rawpy": "rawpy", "xisf": "xisf"},
        "mosaic": {"reproject": "reproject"},
        "remote": {"fsspec": "fsspec", "s3fs": "s3fs"},
        "report": {"jinja2": "jinja2", "matplotlib": "matplotlib", "PIL": "pillow"},
        "series": {"photutils": "photutils"},
        "watch": {"watchfiles": "watchfiles"},
    }
)
"""Of each extra of pyproject.toml that a user may need: the package to install, by the name to import."""


def install(extra: ExtraName) -> str:
    """Return the command that brings all packages of an extra."""
    return pip_install(*EXTRAS[extra].values())


def pip_install(*packages: str) -> str:
    """Return the command that brings packages; names with brackets are quoted, as shells want it."""
    return "pip install " + " ".join(f'"{name}"' if "[" in name else name for name in packages)


def missing(extra: ExtraName, *modules: str) -> list[str]:
    """Return those packages of an extra that are not installed, as pip knows them.

    Parameters
    ----------
    extra : str
        A key of ``EXTRAS``.
    modules : str
        Names to import; none: all of the extra.
    """
    packages = EXTRAS[extra]
    return [packages[name] for name in modules or packages if find_spec(name) is None]
