"""Vocabulary of the library: what may be asked for, what a frame and a tile report carry, and the errors.

Everything here is a value: frozen dataclasses, names and the adapters that turn the dictionaries of
existing ZeMosaic runs into them. Nothing is opened, measured or computed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np

__version__: Final = "0.1.0"

# --------------------------------------------------------------------------- errors


class ZeMosaicError(RuntimeError):
    """Base of every error this library raises on purpose."""


class SpecError(ZeMosaicError, ValueError):
    """An option is unknown or outside its range; the message names the value and what is allowed."""


class FrameError(ZeMosaicError):
    """One frame cannot be used; the rest of the run goes on.

    Parameters
    ----------
    name : str
        File or descriptor the frame came from.
    reason : str
        What is wrong and what would help, in one sentence.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class NoFramesError(ZeMosaicError, ValueError):
    """Nothing is left to stack; the message lists what was dropped and why."""


class PlanError(ZeMosaicError):
    """The work cannot fit into the memory it may use; the message gives needed and allowed bytes."""


class DeviceError(ZeMosaicError):
    """A tile is not one for this device, however often it is tried; the message says why. Another device can do it."""


class OutputError(ZeMosaicError):
    """A result could not be written; the message names the path and the remedy."""


class StackCancelled(ZeMosaicError):
    """Raised by a progress callback, or on an abort event, to stop a tile cleanly."""


# --------------------------------------------------------------------------- names

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

WSC_ENVIRONMENT: Final = "ZEMOSAIC_WSC_IMPL"


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


def _as_number(name: str, value: Any) -> float:
    """Return a number, also of a text that is one; SpecError names the option and the value."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise SpecError(f"{name} = {value!r} is not a number") from exc


def _in_range(name: str, value: object, low: float, high: float, *, open_high: bool = False) -> float:
    number = _as_number(name, value)
    inside = low <= number < high if open_high else low <= number <= high
    if not inside:
        bracket = ")" if open_high else "]"
        raise SpecError(f"{name} = {value!r} is outside [{low:g}, {high:g}{bracket}")
    return number


def _store_number(spec: object, field_name: str, label: str, low: float, high: float) -> None:
    """Check a number of a specification and store it with the type of the field's default; None means that default.

    Raises
    ------
    SpecError
        Not a number, outside [low, high], or a fraction where pixels or frames are counted.
    """
    default, given = getattr(type(spec), field_name), getattr(spec, field_name)
    number: float = _in_range(label, default if given is None else given, low, high)
    if isinstance(default, int):
        if not number.is_integer():
            raise SpecError(f"{label} = {given!r} is not a whole number")
        number = int(number)
    object.__setattr__(spec, field_name, number)


def winsor_limits(value: object) -> tuple[float, float]:
    """Return winsorizing limits as two fractions; None means the default (0.05, 0.05).

    Raises
    ------
    SpecError
        Not a pair of numbers, each in [0, 0.5).
    """
    if value is None:
        return (0.05, 0.05)
    try:
        low, high = (float(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as exc:
        raise SpecError(f"winsor limits {value!r} are not two numbers, e.g. 0.05,0.05") from exc
    return (
        _in_range("winsor limit (low)", low, 0.0, 0.5, open_high=True),
        _in_range("winsor limit (high)", high, 0.0, 0.5, open_high=True),
    )


_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def as_bool(value: object, default: bool) -> bool:
    """Read a switch as existing configurations write it: a bool, a number or 1/true/yes/on, 0/false/no/off."""
    if value is None:
        return default
    if isinstance(value, str):
        text = value.strip().lower()
        return text in _TRUE if text in _TRUE | _FALSE else default
    return bool(value)


def setting(config: object, key: str) -> Any:
    """Return a setting of a configuration, a mapping or an object with attributes; None where it has none."""
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def positive(value: object) -> int | None:
    """Read a whole number above 0 as existing configurations write it; None for anything else: no hint was given."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return int(number) if math.isfinite(number) and number >= 1 else None


# --------------------------------------------------------------------------- specifications


@dataclass(frozen=True)
class StackSpec:
    """How registered frames become one image. Checked when made; see ``docs/algorithms.md``.

    ``kappa_low``/``kappa_high`` None means the method's own default.
    """

    normalize: NormalizeName = "auto"
    weight: WeightName = "noise_variance"
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
    flatten: bool = False  # make the frames' backgrounds alike, by a low-order surface each

    def __post_init__(self) -> None:  # noqa: D105
        put = object.__setattr__
        put(self, "normalize", canonical("normalisation", self.normalize, NormalizeName))
        put(self, "weight", canonical("weight", self.weight, WeightName))
        put(self, "reject", canonical("rejection", self.reject, RejectName))
        put(self, "wsc_impl", canonical("winsorizing (wsc_impl)", self.wsc_impl, WscImpl))
        put(self, "combine", canonical("combination", self.combine, CombineName))
        put(self, "interpolation", canonical("interpolation", self.interpolation, InterpolationName))
        put(self, "winsor_limits", winsor_limits(self.winsor_limits))
        default = (3.0, 3.0) if self.is_legacy_winsor else DEFAULT_KAPPA[self.reject]
        low = default[0] if self.kappa_low is None else self.kappa_low
        high = default[1] if self.kappa_high is None else self.kappa_high
        put(self, "kappa_low", _in_range("kappa (low)", low, 0.0, 1000.0))
        put(self, "kappa_high", _in_range("kappa (high)", high, 0.0, 1000.0))
        put(self, "line_fit", canonical("line fit", self.line_fit, LineFit))
        _store_number(self, "gesd_fraction", "GESD fraction", 0.0, 0.5)
        _store_number(self, "gesd_alpha", "GESD alpha", 1e-9, 0.5)
        for name, label, highest in (
            ("radial_feather", "radial feather fraction", math.inf),  # the map takes it as 0.1 .. 1
            ("radial_power", "radial shape power", 100.0),
            ("radial_floor", "minimum radial weight", 1.0),
        ):
            # Existing configurations carry any number where radial weights are off.
            limits = (0.0, highest) if self.radial_weight else (-math.inf, math.inf)
            _store_number(self, name, label, *limits)

    @property
    def is_legacy_winsor(self) -> bool:
        """True when rejection is ZeMosaic's quantile winsorizing."""
        return self.reject == "winsorized_sigma_clip" and self.wsc_impl == "legacy_quantile"

    @property
    def frame_weight(self) -> WeightName:
        """The weight that is applied: only a mean is weighted."""
        return self.weight if self.combine == "mean" else "none"

    @property
    def needs_stars(self) -> bool:
        """True when weights, gains or backgrounds are measured where the frames' stars are or are not."""
        return self.frame_weight in STAR_WEIGHTS or self.normalize in STAR_NORMALISATIONS or self.flatten

    @property
    def needs_levels(self) -> bool:
        """True when frames are normalised or weighted, so that every one must be measured first."""
        return self.normalize != "none" or self.frame_weight != "none" or self.flatten

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
    min_matched: int = 6  # fewer matched stars cannot support a fit
    max_rms_px: float = 1.0  # rms of star positions after the fit, pixels of the reference
    max_scale_error: float = 0.05  # largest abs(scale - 1) that one telescope can produce

    def __post_init__(self) -> None:  # noqa: D105
        object.__setattr__(self, "mode", canonical("registration", self.mode, RegisterMode))
        object.__setattr__(self, "transform", canonical("transform", self.transform, TransformName))
        _store_number(self, "detection_sigma", "detection sigma", 0.5, 1000.0)
        _store_number(self, "max_rms_px", "max rms", 1e-6, 100.0)
        _store_number(self, "max_scale_error", "max scale error", 0.0, 1000.0)
        for name in ("min_area", "max_stars", "min_matched"):
            _store_number(self, name, name.replace("_", " "), 1.0, 1e6)


@dataclass(frozen=True)
class SelectSpec:
    """Which frames are good enough to be stacked; the reference always is. The defaults keep all."""

    max_fwhm: float | None = None  # pixels of the frame, median of its brighter stars
    min_stars: int | None = None  # stars found
    drop_worst: float = 0.0  # percent of the registered frames

    def __post_init__(self) -> None:  # noqa: D105
        if self.max_fwhm is not None:
            object.__setattr__(self, "max_fwhm", _in_range("max FWHM", self.max_fwhm, 0.1, 1000.0))
        if self.min_stars is not None:
            number = _in_range("min stars", self.min_stars, 0.0, 1e6)
            if not number.is_integer():
                raise SpecError(f"min stars = {self.min_stars!r} is not a whole number")
            object.__setattr__(self, "min_stars", int(number))
        object.__setattr__(self, "drop_worst", _in_range("drop worst, percent", self.drop_worst, 0.0, 99.0))

    @property
    def needs_stars(self) -> bool:
        """True when frames are judged by their stars."""
        return self.max_fwhm is not None or self.min_stars is not None or self.drop_worst > 0.0


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
            _store_number(self, name, f"crop {name}", 0.0, 1e6)
        _store_number(self, "altaz_margin_percent", "alt-az margin, percent", 0.0, 50.0)
        _store_number(self, "altaz_decay", "alt-az decay", 0.0, 1.0)


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
            _store_number(self, name, f"quality gate {name}", 0.0, 1e6)
        _store_number(self, "threshold", "quality gate threshold", -math.inf, math.inf)


# --------------------------------------------------------------------------- what is known of frames and tiles


@dataclass(frozen=True)
class FrameStats:
    """Levels of one frame before normalisation; arrays are ``(C,) float64``, ADU (``variance`` ADU^2).

    ``median`` and ``mad_sigma`` (1.4826 MAD), ``p25`` and ``p90`` (linear-interpolated percentiles),
    ``variance`` (population, after 5 rounds of 3-sigma median-centred clipping), all of valid pixels;
    ``luminance_p25``: 25th percentile of 0.299 R + 0.587 G + 0.114 B (the pixel itself when mono).

    Of its stars, where they were looked for: ``fwhm`` (pixels of the frame) and ``eccentricity``, medians of the
    brighter ones (nan: none); ``n_stars``, how many were found; ``star_flux (k,) float64``, the flux above the sky of
    the brightest, brightest first, ADU.

    To match frames by what they show: ``star_xy (m, 2)`` pixels of the frame, ``star_light (m, C)`` and its standard
    deviation ``star_light_error (m, C)``, ADU, NaN where a star may be saturated; ``sky_mesh (rows, columns, C)``,
    level of the sky in cells of ``sky_cell`` pixels, ADU. All float32: ten thousand frames keep them.
    """

    median: np.ndarray
    mad_sigma: np.ndarray
    p25: np.ndarray
    p90: np.ndarray
    variance: np.ndarray
    luminance_p25: float
    fwhm: float = float("nan")
    n_stars: int = 0
    star_flux: np.ndarray = field(default_factory=lambda: np.empty(0))
    eccentricity: float = float("nan")
    star_xy: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.float32))
    star_light: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    star_light_error: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    sky_mesh: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))
    sky_cell: int = 1


IDENTITY: Final = np.eye(3)


@dataclass(frozen=True)
class Registration:
    """Verdict on one frame: the map from reference pixels to its own pixels, and the evidence.

    Attributes
    ----------
    ok : bool
        False means a failed frame; ``transform`` is then not to be used.
    transform : ndarray (3, 3) float64
        Homogeneous map of a reference pixel (x, y, 1) to this frame's pixel; pixel centres are integers, 0-based.
    method : str
        "stars", "wcs", "none" or "reference".
    matched : int
        Stars that support the fit.
    rms_px : float
        Root mean square distance of matched stars after the fit, pixels (nan without stars).
    reason : str
        Why the frame failed, with its numbers; empty when ok.
    model : str
        "similarity", "affine" or "homography" where one was fitted.
    distortion : ndarray (rows, columns, 2) float32 or None
        What is added to the mapped position, pixels of the frame; see ``zemosaic_distortion``. None: nothing.
    """

    ok: bool
    transform: np.ndarray = field(default_factory=IDENTITY.copy)
    method: str = "none"
    matched: int = 0
    rms_px: float = float("nan")
    reason: str = ""
    model: str = ""
    distortion: np.ndarray | None = None


@dataclass
class FrameTable:
    """One row per frame that is stacked; computed once, the same for every device.

    ``normalised = scale * raw + offset``. Shapes: ``transform (N, 3, 3)``, ``scale, offset, weight (N, C)``, all
    float64; scale dimensionless, offset ADU, weight dimensionless and >= 0. ``distortion``: one field per frame, see
    ``zemosaic_distortion``; empty where no frame has one.
    """

    names: list[str]
    transform: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    weight: np.ndarray
    weight_method: str = "none"
    notes: list[str] = field(default_factory=list)
    normalize_method: str = ""  # what was applied, where the specification left the choice; "" is what it names
    distortion: list[np.ndarray] = field(default_factory=list)

    @property
    def in_place(self) -> np.ndarray:
        """Which frames lie on the reference grid already, ``(N,) bool``."""
        lies = (self.transform == IDENTITY).all(axis=(1, 2))
        return lies & [field.size == 0 for field in self.distortion] if self.distortion else lies


@dataclass
class TileReport:
    """What happened to one tile, for the end-of-run table, ``--json`` and the FITS header."""

    n_input: int = 0
    n_used: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    reference: str = ""
    device: str = "cpu"
    gpu_attempts: int = 0
    device_reason: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    noise_before: list[float] = field(default_factory=list)  # per channel, ADU, reference frame
    noise_after: list[float] = field(default_factory=list)  # per channel, ADU, result
    rejected_low_percent: list[float] = field(default_factory=list)
    rejected_high_percent: list[float] = field(default_factory=list)
    all_rejected_pixels: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # per stage
    peak_rss_bytes: int = 0
    rows_per_slab: int = 0
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, ready for JSON."""
        return asdict(self)


# --------------------------------------------------------------------------- adapters


def wsc_impl_choice(zconfig: object = None, stacking_params: Mapping[str, Any] | None = None) -> str:
    """Which winsorizing the ZeMosaic entry points use: params, then zconfig, then environment, then legacy."""
    for value in (
        (stacking_params or {}).get("wsc_impl"),
        setting(zconfig, "wsc_impl"),
        os.environ.get(WSC_ENVIRONMENT),
    ):
        if value:
            return canonical("winsorizing (wsc_impl)", value, WscImpl)
    return "legacy_quantile"


def stack_spec_from_params(params: Mapping[str, Any], zconfig: object = None) -> StackSpec:
    """Turn a ``stacking_params`` dictionary of existing runs into a :class:`StackSpec`.

    Absent keys, and numbers that are None or empty text, take the defaults of the ZeMosaic entry points (no
    normalisation, weight or rejection, kappa 3/3, limits 0.05/0.05, mean, RGB equalised). Keys of ours, all optional:
    ``wsc_impl``, ``apply_rewinsor``, ``min_radial_weight_floor``, ``interpolation``, ``line_fit``, ``gesd_fraction``,
    ``gesd_alpha``, ``flatten``.

    Raises
    ------
    SpecError
        A name or a value is not allowed.
    """
    get = params.get
    equalize = setting(zconfig, "poststack_equalize_rgb") if "poststack_equalize_rgb" not in params else None

    def number(key: str, default: float) -> float:
        value = get(key)
        is_absent = value is None or (isinstance(value, str) and not value.strip())
        return default if is_absent else _as_number(key, value)

    reject = canonical("rejection", get("stack_reject_algo", "none"), RejectName)
    kappas = DEFAULT_KAPPA[reject] if reject == "percentile_clip" else (3.0, 3.0)  # whose limits are no sigmas
    return StackSpec(
        normalize=get("stack_norm_method", "none"),
        weight=get("stack_weight_method", "none"),
        reject=reject,  # type: ignore[arg-type]
        wsc_impl=wsc_impl_choice(zconfig, params),  # type: ignore[arg-type]
        kappa_low=number("stack_kappa_low", kappas[0]),
        kappa_high=number("stack_kappa_high", kappas[1]),
        winsor_limits=get("parsed_winsor_limits"),  # type: ignore[arg-type]
        apply_rewinsor=as_bool(get("apply_rewinsor"), True),
        line_fit=get("line_fit") or "lad",
        gesd_fraction=number("gesd_fraction", 0.3),
        gesd_alpha=number("gesd_alpha", 0.05),
        combine=get("stack_final_combine") or "mean",
        equalize_rgb=as_bool(get("poststack_equalize_rgb", equalize), True),
        radial_weight=as_bool(get("apply_radial_weight"), False),
        radial_feather=number("radial_feather_fraction", 0.8),
        radial_power=number("radial_shape_power", 2.0),
        radial_floor=number("min_radial_weight_floor", 0.05),
        interpolation=get("interpolation") or "lanczos3",
        flatten=as_bool(get("flatten"), False),
    )


def params_from_stack_spec(spec: StackSpec) -> dict[str, Any]:
    """Return the ``stacking_params`` dictionary that means the same as ``spec``."""
    return {
        "stack_norm_method": spec.normalize,
        "stack_weight_method": spec.weight,
        "stack_reject_algo": spec.reject,
        "wsc_impl": spec.wsc_impl,
        "stack_kappa_low": spec.kappa_low,
        "stack_kappa_high": spec.kappa_high,
        "parsed_winsor_limits": spec.winsor_limits,
        "apply_rewinsor": spec.apply_rewinsor,
        "line_fit": spec.line_fit,
        "gesd_fraction": spec.gesd_fraction,
        "gesd_alpha": spec.gesd_alpha,
        "stack_final_combine": spec.combine,
        "poststack_equalize_rgb": spec.equalize_rgb,
        "apply_radial_weight": spec.radial_weight,
        "radial_feather_fraction": spec.radial_feather,
        "radial_shape_power": spec.radial_power,
        "min_radial_weight_floor": spec.radial_floor,
        "interpolation": spec.interpolation,
        "flatten": spec.flatten,
    }
