"""Sets of options under one name, for telescopes and purposes; what a user gives besides wins over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from zemosaic_phase3.errors import SpecError

Value = bool | int | float | str


@dataclass(frozen=True)
class Preset:
    """Options under one name.

    Attributes
    ----------
    name : str
    meaning : str
        For the help.
    values : tuple of (option, value)
        As the keywords of ``zemosaic_phase3.stack`` and the entries of a configuration file are called.
    """

    name: str
    meaning: str
    values: tuple[tuple[str, Value], ...]


_ALT_AZ: Final = (("flatten", True), ("drop_worst", 5.0), ("min_stars", 8))
# The field turns and the gradient of the sky does not: backgrounds differ from frame to frame. Clouds and wind leave
# frames with few stars, and some with wide ones.

PRESETS: Final[Mapping[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset("seestar", "alt-azimuth telescopes of ZWO: turning fields, gradients, clouds", _ALT_AZ),
        Preset("dwarf", "those of DwarfLab: the same", _ALT_AZ),
        Preset(
            "quick", "a look at the night, in less time",
            (("reject", "sigma_clip"), ("interpolation", "bilinear"), ("spare_stars", False)),
        ),
        Preset(
            "best", "for a final image: without the worst frames, with all maps",
            (("flatten", True), ("drop_worst", 5.0), ("maps", True))
        ),
        Preset(
            "zemosaic", "as ZeMosaic's own defaults choose",
            (
                ("normalize", "linear_fit"), ("weight", "noise_variance"), ("reject", "winsorized_sigma_clip"),
                ("kappa_low", 3.0), ("kappa_high", 3.0), ("combine", "mean"), ("equalize_rgb", True),
                ("spare_stars", False),
            ),
        ),
    )
}  # fmt: skip
"""Every preset, by name."""


def preset_of(name: str) -> Preset:
    """Return a preset by its name.

    Raises
    ------
    SpecError
        There is none of this name.
    """
    found = PRESETS.get(str(name).strip().lower())
    if found is None:
        raise SpecError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return found
