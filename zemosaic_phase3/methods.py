"""The table of methods: what may be asked for, what each needs, and the limits where none are given.

Everything that must know all rejections reads :data:`REJECTIONS`: the specification, the command line and its help,
both engines, the tests and the check of the table in ``docs/algorithms.md``. Nothing here needs a compiler or arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from zemosaic_phase3.errors import SpecError

# Names as type checkers and editors see them. They cannot read a table, so names stand here once more, and a test
# (tests/combine/test_kernel_arguments.py) keeps them equal to it.
RejectName = Literal[
    "none",
    "kappa_sigma",
    "winsorized_sigma_clip",
    "sigma_clip",
    "linear_fit_clip",
    "gesd",
    "averaged_sigma",
    "percentile_clip",
    "mad_clip",
]
WscImpl = Literal["legacy_quantile", "pixinsight"]
LineFit = Literal["lad", "ols"]
CombineName = Literal["mean", "median", "min", "max"]

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
WeightName = Literal["none", "noise_variance", "noise_fwhm", "point_source", "snr", "stars"]
STAR_WEIGHTS: Final = frozenset(
    {"noise_fwhm", "point_source", "snr", "stars"}
)  # weights that are measured on a frame's stars
InterpolationName = Literal["lanczos3", "bicubic", "bilinear", "smooth", "nearest"]
SMOOTHING: Final = frozenset({"smooth"})  # also change frames whose pixels are those of the grid
FlattenName = Literal["auto", "on", "off"]
RegisterMode = Literal["auto", "stars", "wcs", "none"]
TransformName = Literal["similarity", "affine", "homography", "auto"]
FramingName = Literal["reference", "union", "intersection"]
DeviceName = Literal["auto", "cpu", "gpu"]

Unit = Literal["sigma", "MAD", "fraction", "none"]
Need = Literal["squares", "ranks", "critical", "columns"]


@dataclass(frozen=True)
class Rejection:
    """One way to reject.

    Its code is ``rejection/KERNEL.py`` for the processor and ``rejection/KERNEL.cu`` for the GPU; how both are called
    is said in :mod:`rejection.judge`.

    Attributes
    ----------
    name : str
        What is asked for: ``--reject``, ``StackSpec.reject``. Rows of one name are told apart by ``choice``.
    limits : tuple of float
        Low and high limit where none are given.
    unit : str
        Of the limits: sigma, MAD (median absolute deviation), a fraction of the median, or none: it has no limits.
    fewest : int
        Valid samples of a pixel that can be judged; with fewer all are kept.
    needs : tuple of str
        What is prepared before a judge is called. Sums over the samples up to each rank: ``squares`` for d and d * d,
        ``ranks`` for d and rank * d, d = x - median. ``critical``: the critical values of Student's test. ``columns``:
        memory in which the samples of each pixel lie side by side.
    choice : tuple of str, optional
        An option of ``StackSpec`` and its value that choose this row among those of one name. The first row of a name
        has the limits that are listed for it.
    options : tuple of str
        Options of ``StackSpec`` that are read by this row alone.
    replaces : bool
        With ``apply_rewinsor`` a rejected sample is replaced by the value it is clipped to, instead of left out.
    most_on_gpu : int, optional
        Frames that the CUDA text takes at most; None for any number.
    kernel : str
        Name of the files; the method's own where none is given.
    """

    name: str
    limits: tuple[float, float] = (3.0, 3.0)
    unit: Unit = "sigma"
    fewest: int = 3
    needs: tuple[Need, ...] = ()
    choice: tuple[str, str] | None = None
    options: tuple[str, ...] = ()
    replaces: bool = False
    most_on_gpu: int | None = None
    kernel: str = ""

    def __post_init__(self) -> None:  # noqa: D105
        object.__setattr__(self, "kernel", self.kernel or self.name)

    def is_meant_by(self, options: object) -> bool:
        """Return whether options, attributes such as those of ``StackSpec``, choose this row among its namesakes."""
        return self.choice is None or getattr(options, self.choice[0]) == self.choice[1]


REJECTIONS: Final[tuple[Rejection, ...]] = (
    Rejection("none", unit="none", fewest=1),
    Rejection("kappa_sigma", needs=("squares",)),
    Rejection(
        "winsorized_sigma_clip",
        limits=(4.0, 3.0),
        needs=("squares",),
        choice=("wsc_impl", "pixinsight"),
        kernel="winsorized_huber",
    ),
    Rejection(
        "winsorized_sigma_clip",
        needs=("squares",),
        choice=("wsc_impl", "legacy_quantile"),
        options=("winsor_limits", "apply_rewinsor"),
        replaces=True,
        kernel="winsorized_quantile",
    ),
    Rejection("sigma_clip", needs=("squares",)),
    Rejection(
        "linear_fit_clip",
        limits=(5.0, 2.5),
        fewest=5,
        needs=("columns",),
        choice=("line_fit", "lad"),
        most_on_gpu=65_536,  # the weight of equal slopes, up to n (n - 1) / 2, is added up in 32 bits
        kernel="least_absolute_line",
    ),
    Rejection(
        "linear_fit_clip",
        limits=(5.0, 2.5),
        fewest=5,
        needs=("ranks",),
        choice=("line_fit", "ols"),
        kernel="least_squares_line",
    ),
    Rejection("gesd", unit="none", fewest=10, needs=("squares", "critical"), options=("gesd_fraction", "gesd_alpha")),
    Rejection("averaged_sigma", limits=(4.0, 3.0), needs=("squares",)),
    Rejection("percentile_clip", limits=(0.2, 0.1), unit="fraction", fewest=2),
    Rejection("mad_clip", limits=(4.5, 4.5), unit="MAD"),  # 3 sigma of Gaussian noise
)
"""Every rejection, in the order in which they are listed to a user."""

KAPPA_SIGMA_CLIPPED: Final = Rejection("kappa_sigma", needs=("squares",), kernel="kappa_sigma_clipped")
"""What ``stack_aligned_images`` calls kappa_sigma; no option asks for it."""

KERNELS: Final[Mapping[str, Rejection]] = {row.kernel: row for row in (*REJECTIONS, KAPPA_SIGMA_CLIPPED)}
"""Every row by the name of its files."""

DEFAULT_KAPPA: Final[Mapping[str, tuple[float, float]]] = {
    row.name: row.limits for row in REJECTIONS if row is next(r for r in REJECTIONS if r.name == row.name)
}
"""Low and high limit by the name of the method, where the caller gives none."""


def rejection_row(name: str, options: object) -> Rejection:
    """Return the row of a rejection by its canonical name and the options that choose among rows of that name."""
    return next(row for row in REJECTIONS if row.name == name and row.is_meant_by(options))


@dataclass(frozen=True)
class Combination:
    """One way to make a value of the samples that were kept.

    Attributes
    ----------
    name : str
        What is asked for: ``--combine``, ``StackSpec.combine``.
    halves : int, optional
        The rank whose sample is taken, in halves of the highest one: 0 for the lowest, 1 for the middle, 2 for the
        highest. None for the weighted mean of all.
    """

    name: str
    halves: int | None = None

    @property
    def is_mean(self) -> bool:
        """True for the mean; weights apply to nothing else."""
        return self.halves is None

    @property
    def has_error(self) -> bool:
        """True where an error of the result can be given: for means and medians."""
        return self.halves in (None, 1)


COMBINATIONS: Final[Mapping[str, Combination]] = {
    row.name: row
    for row in (Combination("mean"), Combination("median", 1), Combination("min", 0), Combination("max", 2))
}
"""Every combination, by name."""

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


OTHER_PROGRAMS: Final[Mapping[str, str]] = {
    # Siril: "rej w 3 3 -norm=addscale -weight=noise"
    "n": "none", "p": "percentile_clip", "s": "sigma_clip", "w": "winsorized_sigma_clip", "l": "linear_fit_clip",
    "g": "gesd", "a": "mad_clip", "nonorm": "none", "add": "additive", "addscale": "additive_scaling",
    "mul": "multiplicative", "mulscale": "multiplicative_scaling", "noise": "noise_variance", "wfwhm": "noise_fwhm",
    "nbstars": "stars", "sigma": "sigma_clip", "mad": "mad_clip",
    # PixInsight: ImageIntegration
    "no_rejection": "none", "percentile_clipping": "percentile_clip", "sigma_clipping": "sigma_clip",
    "winsorized_sigma_clipping": "winsorized_sigma_clip", "averaged_sigma_clipping": "averaged_sigma",
    "linear_fit_clipping": "linear_fit_clip", "esd": "gesd", "generalized_extreme_studentized_deviate": "gesd",
    "no_normalization": "none", "additive_with_scaling": "additive_scaling",
    "multiplicative_with_scaling": "multiplicative_scaling", "noise_evaluation": "noise_variance",
    "don't_care": "none", "dont_care": "none", "average": "mean", "minimum": "min", "maximum": "max",
    # DeepSkyStacker, whose clipping goes on until nothing is clipped
    "kappa_sigma_clipping": "sigma_clip", "bilinear_interpolation": "bilinear",
}  # fmt: skip
"""Words of other programs for what is the same here; docs/choices.md has the table."""


def canonical(kind: str, value: object, allowed: object) -> str:
    """Return the canonical spelling of a method name.

    Parameters
    ----------
    kind : str
        What the name chooses, for the message ("rejection", "weight", ...).
    value : object
        The name as given; case, surrounding blanks and ``-`` or blanks for ``_`` do not matter. None means "none".
    allowed : typing.Literal
        The names that exist.

    Raises
    ------
    SpecError
        The name is unknown.
    """
    names = get_args(allowed)
    text = "none" if value is None else str(value).strip().lower().replace("-", "_").replace(" ", "_")
    text = text if text in names else ALIASES.get(text, text)
    text = text if text in names else OTHER_PROGRAMS.get(text, text)
    if text not in names:
        raise SpecError(f"unknown {kind} {value!r}; choose one of: {', '.join(names)}")
    return text
