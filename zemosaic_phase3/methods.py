"""Names of the methods: what may be asked for, other spellings of it, and the limits where none are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from zemosaic_phase3.errors import SpecError

RejectName = Literal[
    "none",
    "kappa_sigma",
    "winsorized_sigma_clip",
    "sigma_clip",
    "linear_fit_clip",
    "gesd",
    "averaged_sigma",
    "percentile_clip",
]
LineFit = Literal["lad", "ols"]
WscImpl = Literal["legacy_quantile", "pixinsight"]
NormalizeName = Literal[
    "none",
    "linear_fit",
    "sky_mean",
    "additive",
    "multiplicative",
    "additive_scaling",
    "multiplicative_scaling",
    "photometric",
    "auto",
]
STAR_NORMALISATIONS: Final = frozenset({"photometric", "auto"})  # that compare the fluxes of stars
WeightName = Literal["none", "noise_variance", "noise_fwhm", "snr", "stars"]
STAR_WEIGHTS: Final = frozenset({"noise_fwhm", "snr", "stars"})  # weights that are measured on a frame's stars
CombineName = Literal["mean", "median", "min", "max"]
InterpolationName = Literal["lanczos3", "bicubic", "bilinear", "nearest"]
RegisterMode = Literal["auto", "stars", "wcs", "none"]
TransformName = Literal["similarity", "affine", "homography", "auto"]
DeviceName = Literal["auto", "cpu", "gpu"]

ALIASES: Final[Mapping[str, str]] = {
    "winsorized": "winsorized_sigma_clip",
    "winsor": "winsorized_sigma_clip",
    "kappa": "kappa_sigma",
    "linear_fit": "linear_fit_clip",
    "linear": "linear_fit",  # as a normalisation
    "skymean": "sky_mean",
    "median": "additive",  # as a normalisation
    "noise_plus_fwhm": "noise_fwhm",
    "": "none",
}
"""Other spellings of method names that existing runs use; docs/zemosaic.md says where each is from."""

DEFAULT_KAPPA: Final[Mapping[str, tuple[float, float]]] = {
    "none": (3.0, 3.0),
    "kappa_sigma": (3.0, 3.0),
    "winsorized_sigma_clip": (4.0, 3.0),
    "sigma_clip": (3.0, 3.0),
    "linear_fit_clip": (5.0, 2.5),
    "gesd": (3.0, 3.0),
    "averaged_sigma": (4.0, 3.0),
    "percentile_clip": (0.2, 0.1),
}
"""Low and high limit where the caller gives none: units of sigma, fractions of the median for percentile_clip."""


def canonical(kind: str, value: object, allowed: object) -> str:
    """Return the canonical spelling of a method name.

    Parameters
    ----------
    kind : str
        What the name chooses, for the message ("rejection", "weight", ...).
    value : object
        The name as given; case, surrounding blanks and ``-`` for ``_`` do not matter. None means "none".
    allowed : typing.Literal
        The names that exist.

    Raises
    ------
    SpecError
        The name is unknown.
    """
    names = get_args(allowed)
    text = "none" if value is None else str(value).strip().lower().replace("-", "_")
    text = text if text in names else ALIASES.get(text, text)
    if text not in names:
        raise SpecError(f"unknown {kind} {value!r}; choose one of: {', '.join(names)}")
    return text
