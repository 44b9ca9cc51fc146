"""Specifications: what a stack, a registration, a selection, a crop and a quality gate are asked to do.

Frozen dataclasses, checked when made. Nothing is opened, measured or computed here.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.methods import (
    STAR_NORMALISATIONS,
    STAR_WEIGHTS,
    CombineName,
    FlattenName,
    FramingName,
    InterpolationName,
    LineFit,
    NormalizeName,
    RegisterMode,
    Rejection,
    RejectName,
    TransformName,
    WeightName,
    WscImpl,
    canonical,
    rejection_row,
)
from zemosaic_phase3.settings import frame_limit, in_range, store_number, winsor_limits

LEAST_PIXFRAC: Final = 0.05  # of a pixel


@dataclass(frozen=True)
class StackSpec:
    """How registered frames become one image. Checked when made; see ``docs/algorithms.md``.

    ``kappa_low``/``kappa_high`` None means the method's own default.
    """

    normalize: NormalizeName = "auto"
    weight: WeightName = "point_source"
    reject: RejectName = "winsorized_sigma_clip"
    wsc_impl: WscImpl = "pixinsight"
    kappa_low: float | None = None
    kappa_high: float | None = None
    winsor_limits: tuple[float, float] = (0.05, 0.05)
    apply_rewinsor: bool = True
    line_fit: LineFit = "lad"  # linear_fit_clip: least absolute deviations or least squares
    gesd_fraction: float = 0.3  # gesd: largest fraction of outliers looked for
    gesd_alpha: float = 0.05  # gesd: significance
    combine: CombineName = "mean"
    equalize_rgb: bool = False
    radial_weight: bool = False
    radial_feather: float = 0.8
    radial_power: float = 2.0
    radial_floor: float = 0.05
    interpolation: InterpolationName = "lanczos3"
    flatten: FlattenName = "auto"  # make the frames' backgrounds alike, by a low-order surface each; also a bool
    spare_stars: bool = True  # a mean keeps what seeing explains of stars: engine.star_tolerance
    framing: FramingName = "reference"  # what of the sky the result shows: pipeline.framing
    grid: tuple[int, int] | None = None  # (H, W) of the result, which the frames' transforms start from; None: theirs
    drizzle: float = 0.0  # pixels of the result for one of the reference, 1 to 3, by drizzle; 0: interpolated instead
    pixfrac: float = 1.0  # drizzle: side of a drop, pixels of its frame
    bounded_by_stars: bool = False  # linear_fit only: where a frame's stars contradict its scale, they decide

    def __post_init__(self) -> None:  # noqa: D105
        put = object.__setattr__
        put(self, "normalize", canonical("normalisation", self.normalize, NormalizeName))
        put(self, "weight", canonical("weight", self.weight, WeightName))
        put(self, "reject", canonical("rejection", self.reject, RejectName))
        put(self, "wsc_impl", canonical("winsorizing (wsc_impl)", self.wsc_impl, WscImpl))
        put(self, "combine", canonical("combination", self.combine, CombineName))
        put(self, "interpolation", canonical("interpolation", self.interpolation, InterpolationName))
        given = {True: "on", False: "off"}.get(self.flatten, self.flatten)  # type: ignore[call-overload]
        put(self, "flatten", canonical("flatten", given, FlattenName))
        put(self, "framing", canonical("framing", self.framing, FramingName))
        put(self, "winsor_limits", winsor_limits(self.winsor_limits))
        put(self, "line_fit", canonical("line fit", self.line_fit, LineFit))
        default = self.rejection.limits
        low = default[0] if self.kappa_low is None else self.kappa_low
        high = default[1] if self.kappa_high is None else self.kappa_high
        put(self, "kappa_low", in_range("kappa (low)", low, 0.0, 1000.0))
        put(self, "kappa_high", in_range("kappa (high)", high, 0.0, 1000.0))
        if self.grid is not None:
            height, width = (int(in_range("grid (height, width)", n, 1, 1e6)) for n in self.grid)
            put(self, "grid", (height, width))
        self._check_drizzle()
        store_number(self, "gesd_fraction", "GESD fraction", 0.0, 0.5)
        store_number(self, "gesd_alpha", "GESD alpha", 1e-9, 0.5)
        for name, label, highest in (
            ("radial_feather", "radial feather fraction", math.inf),  # the map takes it as 0.1 .. 1
            ("radial_power", "radial shape power", 100.0),
            ("radial_floor", "minimum radial weight", 1.0),
        ):
            # Existing configurations carry any number where radial weights are off.
            limits = (0.0, highest) if self.radial_weight else (-math.inf, math.inf)
            store_number(self, name, label, *limits)

    def _check_drizzle(self) -> None:
        store_number(self, "drizzle", "drizzle scale", -math.inf, math.inf)
        store_number(self, "pixfrac", "pixfrac", 0.0, 1.0)
        if self.drizzle and not 1.0 <= self.drizzle <= 3.0:
            raise SpecError(f"drizzle scale = {self.drizzle:g} is outside 1 to 3 (0: interpolate)")
        if self.pixfrac < LEAST_PIXFRAC:
            raise SpecError(
                f"pixfrac = {self.pixfrac:g} is below {LEAST_PIXFRAC}: smaller drops leave nothing but holes"
            )
        if self.drizzle and self.radial_weight:
            raise SpecError("radial weights and drizzle exclude each other: a drop is weighted by its area")

    @property
    def rejection(self) -> Rejection:
        """The row of the table of methods that is asked for."""
        return rejection_row(self.reject, self)

    @property
    def is_legacy_winsor(self) -> bool:
        """True when rejection is ZeMosaic's quantile winsorizing."""
        return self.rejection.replaces

    @property
    def spares(self) -> bool:
        """True when samples of stars are spared: only a mean loses light by rejection, and not where it replaces."""
        replaces = self.rejection.replaces and self.apply_rewinsor
        return self.spare_stars and self.reject != "none" and self.combine == "mean" and not replaces

    @property
    def frame_weight(self) -> WeightName:
        """The weight that is applied: only a mean is weighted."""
        return self.weight if self.combine == "mean" else "none"

    @property
    def needs_stars(self) -> bool:
        """True when weights, gains or backgrounds are measured where the frames' stars are or are not."""
        by_stars = self.normalize in STAR_NORMALISATIONS or self.is_bounded_by_stars
        return self.frame_weight in STAR_WEIGHTS or by_stars or self.flatten == "on"

    @property
    def is_bounded_by_stars(self) -> bool:
        """True when scales from percentiles are checked by the stars."""
        return self.bounded_by_stars and self.normalize == "linear_fit"

    @property
    def needs_levels(self) -> bool:
        """True when frames are normalised or weighted, so that every one must be measured first."""
        return self.normalize != "none" or self.frame_weight != "none" or self.flatten == "on"

    @property
    def kappas(self) -> tuple[float, float]:
        """Low and high rejection limit, units of sigma, never None."""
        return float(self.kappa_low or 0.0), float(self.kappa_high or 0.0)


@dataclass(frozen=True)
class RegisterSpec:
    """How frames are brought onto the reference, and when a fit counts as supported."""

    mode: RegisterMode = "auto"
    transform: TransformName = "similarity"  # auto: the simplest that the matched stars do not contradict
    detection_sigma: float = 5.0  # detection threshold, units of the background rms
    min_area: int = 5  # connected pixels above the threshold
    max_stars: int = 400  # brightest stars kept per frame
    min_matched: int = 4  # matched stars, at least, whatever they prove
    max_rms_px: float = 1.0  # rms of star positions after the fit, pixels of the reference
    max_scale_error: float = 0.05  # largest abs(scale - 1) that one telescope can produce

    def __post_init__(self) -> None:  # noqa: D105
        object.__setattr__(self, "mode", canonical("registration", self.mode, RegisterMode))
        object.__setattr__(self, "transform", canonical("transform", self.transform, TransformName))
        store_number(self, "detection_sigma", "detection sigma", 0.5, 1000.0)
        store_number(self, "max_rms_px", "max rms", 1e-6, 100.0)
        store_number(self, "max_scale_error", "max scale error", 0.0, 1000.0)
        for name in ("min_area", "max_stars", "min_matched"):
            store_number(self, name, name.replace("_", " "), 1.0, 1e6)


WIDE: Final = "2.5x"  # the width of stars at which a frame is left out unless another limit is asked for


@dataclass(frozen=True)
class SelectSpec:
    """Which frames are good enough to be stacked; the reference always is.

    A limit is a number, or text: "3s" is 3 sigmas of the session beyond its median, "2.5x" 2.5 times that. By default
    frames are left out whose stars are so wide that something is wrong with them: out of focus, or trailed.
    """

    max_fwhm: float | str | None = WIDE  # pixels of the frame, median of its brighter stars
    max_eccentricity: float | str | None = None  # sqrt(1 - (b / a)^2), median of those
    max_background: float | str | None = None  # ADU, mean of the channels' medians
    min_stars: int | str | None = None  # stars found
    drop_worst: float = 0.0  # percent of the registered frames

    def __post_init__(self) -> None:  # noqa: D105
        put = object.__setattr__
        put(self, "max_fwhm", frame_limit("max FWHM", self.max_fwhm, 0.1, 1000.0))
        put(self, "max_eccentricity", frame_limit("max eccentricity", self.max_eccentricity, 0.0, 1.0))
        put(self, "max_background", frame_limit("max background", self.max_background, -1e9, 1e9))
        fewest = frame_limit("min stars", self.min_stars, 0.0, 1e6)
        if isinstance(fewest, float):
            if not fewest.is_integer():
                raise SpecError(f"min stars = {self.min_stars!r} is not a whole number")
            fewest = int(fewest)
        put(self, "min_stars", fewest)
        object.__setattr__(self, "drop_worst", in_range("drop worst, percent", self.drop_worst, 0.0, 99.0))

    @property
    def needs_stars(self) -> bool:
        """True when frames are judged by their stars; the default limit is only where stars are found anyway."""
        asked = self.max_fwhm not in (None, WIDE), self.max_eccentricity is not None, self.min_stars is not None
        return any(asked) or self.drop_worst > 0.0

    @property
    def needs_levels(self) -> bool:
        """True when frames are judged by what is measured of them."""
        return self.needs_stars or self.max_background is not None


Inputs = tuple[str | os.PathLike[str], ...]
COSMETIC: Final = ("auto", "off")  # or a file


@dataclass(frozen=True)
class CalibrationSpec:
    """Calibration frames, how they are matched to the lights, and what is done about defective photosites.

    Files, folders and patterns; what ``library`` holds is told apart by its headers and names.
    """

    dark: Inputs = ()
    flat: Inputs = ()
    bias: Inputs = ()
    dark_flat: Inputs = ()
    library: str | os.PathLike[str] | None = None
    scale_dark: bool = False  # a dark of another exposure is scaled, which needs a bias
    temperature_tolerance: float = 3.0  # of lights and darks, degrees
    cache: str | os.PathLike[str] | None = None  # folder of finished masters; None: that of the user
    cosmetic: str | os.PathLike[str] = "auto"  # "auto", "off", or the file of a defect map

    def __post_init__(self) -> None:  # noqa: D105
        for name in ("dark", "flat", "bias", "dark_flat"):
            given = getattr(self, name) or ()
            paths = (given,) if isinstance(given, str | os.PathLike) else tuple(given)
            for path in paths:
                if not isinstance(path, str | os.PathLike):
                    raise SpecError(f"{name.replace('_', '-')} = {path!r} is no file, folder or pattern")
            object.__setattr__(self, name, tuple(map(os.fspath, paths)))
        for name in ("library", "cache", "cosmetic"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else os.fspath(value))
        store_number(self, "temperature_tolerance", "temperature tolerance", 0.0, 1000.0)
        text = str(self.cosmetic).strip().lower()
        if text in COSMETIC:
            object.__setattr__(self, "cosmetic", text)
        if self.scale_dark and not (self.bias or self.library):
            raise SpecError("scaling darks (scale_dark) needs a bias: a dark is its bias and a current that grows")

    @property
    def wants_masters(self) -> bool:
        """True when any calibration frame was given."""
        return bool(self.dark or self.flat or self.bias or self.dark_flat or self.library)


@dataclass(frozen=True)
class CropSpec:
    """Cropping and alt-az cleanup of a finished tile (lengths in pixels unless said)."""

    quality_crop: bool = False
    band_px: int = 32
    k_sigma: float = 2.0
    margin_px: int = 8
    min_run: int = 2
    altaz_cleanup: bool = False
    altaz_margin_percent: float = 5.0
    altaz_decay: float = 0.15
    altaz_nanize: bool = True

    def __post_init__(self) -> None:  # noqa: D105
        for name in ("band_px", "margin_px", "min_run", "k_sigma"):
            store_number(self, name, f"crop {name}", 0.0, 1e6)
        store_number(self, "altaz_margin_percent", "alt-az margin, percent", 0.0, 50.0)
        store_number(self, "altaz_decay", "alt-az decay", 0.0, 1.0)


@dataclass(frozen=True)
class GateSpec:
    """Quality gate of a finished tile: accept at score <= threshold, 0 = good."""

    enabled: bool = False
    threshold: float = 0.48
    edge_band_px: int = 64
    k_sigma: float = 2.5
    erode_px: int = 3
    move_rejects: bool = True

    def __post_init__(self) -> None:  # noqa: D105
        for name in ("edge_band_px", "k_sigma", "erode_px"):
            store_number(self, name, f"quality gate {name}", 0.0, 1e6)
        store_number(self, "threshold", "quality gate threshold", -math.inf, math.inf)
