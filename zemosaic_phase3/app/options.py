"""The options of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

from zemosaic_phase3.app.choice_options import add_choices
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.io.atomic_write import TILE_SUFFIXES
from zemosaic_phase3.io.export import EXPORT_SUFFIXES
from zemosaic_phase3.io.mosaic_cards import BAYER_PATTERNS
from zemosaic_phase3.methods import (
    DEFAULT_KAPPA,
    REJECTIONS,
    CombineName,
    DeviceName,
    FlattenName,
    FramingName,
    InterpolationName,
    LineFit,
    NormalizeName,
    RegisterMode,
    RejectName,
    TransformName,
    WeightName,
    WscImpl,
    canonical,
)
from zemosaic_phase3.pipeline.frame_count import LeastFrames
from zemosaic_phase3.pipeline.frame_groups import GROUP_KEYS, group_keys
from zemosaic_phase3.pipeline.outputs import PREVIEW_SIDE_PX
from zemosaic_phase3.pipeline.series import SeriesSpec
from zemosaic_phase3.report.preview import PictureSize
from zemosaic_phase3.report.stretch import StretchName
from zemosaic_phase3.runtime import limits as limits_module
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, SelectSpec, StackSpec

NO_PREVIEW: Final = Path("none")
LIVE_PORT: Final = 8733


def _name(kind: str, allowed: object) -> Callable[[str], str]:
    """Return a converter for a method's name; argparse turns its error into a usage message with what is allowed."""

    def convert(text: str) -> str:
        return _as_argument(lambda: canonical(kind, text, allowed))

    return convert


def _as_argument(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except SpecError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _memory(text: str) -> int:
    return int(_as_argument(lambda: limits_module.parse_memory(text)))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _limits(text: str) -> tuple[float, float]:
    low, comma, high = text.partition(",")
    try:
        if comma:
            return float(low), float(high)
    except ValueError:
        pass  # said below, the same as for a missing comma
    raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a comma between, e.g. 0.05,0.05")


def _drift(text: str) -> tuple[float, float]:
    x, comma, y = text.partition(",")
    try:
        if comma:
            return float(x), float(y)
    except ValueError:
        pass  # said below, the same as for a missing comma
    raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a comma between, e.g. 1200,-300")


def _bayer(text: str) -> str:
    if text.lower() in ("auto", "none"):
        return text.lower()
    if text.upper() not in BAYER_PATTERNS:
        allowed = ", ".join(("auto", "none", *BAYER_PATTERNS))
        raise argparse.ArgumentTypeError(f"unknown Bayer pattern {text!r}; choose one of: {allowed}")
    return text.upper()


def _size(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write rows x columns, e.g. 1080x1920")
    return int(rows), int(columns)


def _picture_size(text: str) -> PictureSize:
    if text in ("half", "full"):
        return text  # type: ignore[return-value]
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither half nor full nor a number of pixels")
    return int(text)


def _path_ending(*suffixes: str, instead: str | None = None) -> Callable[[str], Path]:
    """Return a converter for a file to write: it must end in one of ``suffixes``, or be the word ``instead``."""

    def convert(text: str) -> Path:
        if text != instead and not text.lower().endswith(suffixes):
            also = "" if instead is None else f", or be {instead!r}"
            raise argparse.ArgumentTypeError(f"{text!r} must end in {' or '.join(suffixes)}{also}")
        return Path(text)

    return convert


def add_stack(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``stack``."""
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="files, folders (their FITS, raw, XISF, TIFF or SER files), zip or tar, or quoted patterns",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=_path_ending(*TILE_SUFFIXES),
        help="FITS file to write, ending in .fits, .fit or .fts (default: in this folder, named after object, number "
        "and length of exposures, filter and date, such as M31_200x10s_IRCUT_2025-01-15.fits)",
    )  # fmt: skip
    add_choices(parser)
    add_choice_of_frames(parser.add_argument_group("which frames"))
    _add_registration(parser.add_argument_group("frames and registration"))
    _add_calibration(parser.add_argument_group("calibration"))
    _add_stacking(parser.add_argument_group("rejection and combination"))
    _add_resources(parser.add_argument_group("device and resources"))
    _add_results(parser.add_argument_group("results"))
    _add_messages(parser)


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``watch``: those of ``stack``, and its own."""
    add_stack(parser)
    group = parser.add_argument_group("watching")
    group.add_argument(
        "--every", type=_positive, default=1, metavar="N",
        help="stack again with so many new frames, or fewer after half a minute without one (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--until-idle", type=float, metavar="SECONDS", help="end after so long without a new frame (default: never)"
    )
    group.add_argument(
        "--port", type=int, default=LIVE_PORT, metavar="N",
        help="of the page on this machine; another one where it is taken (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--no-page", action="store_true", help="show no page (default: do)")


Group = argparse._ArgumentGroup  # noqa: SLF001 - argparse gives its groups no public name


def add_choice_of_frames(group: Group) -> None:
    """Add the options that say which frames belong to the stack."""
    group.add_argument(
        "--recursive", action="store_true", help="take the frames in the folders below a folder too (default: no)"
    )
    group.add_argument(
        "--filter", metavar="NAME", help="stack only frames of this filter (default: the filter of most frames)"
    )
    group.add_argument(
        "--group-by", type=_group_keys, metavar="LIST",
        help=f"one stack for each group of frames that agree in these, of: {', '.join(GROUP_KEYS)}; the group is added "
        "to the name of OUT, e.g. filter,exposure (default: one stack)",
    )  # fmt: skip
    group.add_argument(
        "--min-frames", type=_least_frames, metavar="N|P%", default=None,
        help="with fewer frames used, or a smaller share of them, the exit status is 3; one frame of several is "
        "written only with --min-frames 1 (default: 50%%)",
    )  # fmt: skip


def _least_frames(text: str) -> LeastFrames:
    found: LeastFrames = _as_argument(lambda: LeastFrames.of(text, fails="one"))
    return found


def _series(text: str) -> SeriesSpec:
    found: SeriesSpec = _as_argument(lambda: SeriesSpec.of(text))
    return found


def _group_keys(text: str) -> tuple[str, ...]:
    keys: tuple[str, ...] = _as_argument(lambda: group_keys(text))
    return keys


def _add_choice(group: Group, option: str, kind: str, allowed: object, default: str, meaning: str) -> None:
    names = get_args(allowed)
    group.add_argument(
        *option.split(), dest=option.split()[-1][2:].replace("-", "_"), type=_name(kind, allowed), default=default,
        metavar="NAME",
        help=f"{meaning}; one of: {', '.join(names)} (default: {default})",
    )  # fmt: skip


def _add_registration(group: Group, *, with_reference: bool = True) -> None:
    if with_reference:  # many stacks have no one reference
        group.add_argument(
            "--reference", metavar="FILE", default="auto",
            help="frame the others are brought onto: one of the inputs, or auto for the best of them (default: auto)",
        )  # fmt: skip
    _add_choice(
        group, "--register", "registration", RegisterMode, "auto",
        "how; auto is stars, seeded by the WCS, with the WCS alone where there are too few stars; "
        "none takes frames that are registered already",
    )  # fmt: skip
    _add_choice(
        group, "--transform", "transform", TransformName, RegisterSpec.transform,
        "model of a frame's map onto the reference; auto is the simplest that the stars do not contradict",
    )  # fmt: skip
    _add_choice(
        group, "--framing", "framing", FramingName, StackSpec.framing,
        "what the result shows: the field of the reference, all that any frame shows, or what all of them share",
    )  # fmt: skip
    if with_reference:
        group.add_argument(
            "--comet", action="append", metavar="FRAME:X,Y",
            help="hold still for a moving target instead of the stars: its place in two frames (given twice), or a "
            "table with its times (UTC), RA and DEC (default: the stars)",
        )  # fmt: skip
    group.add_argument(
        "--max-fwhm", metavar="LIMIT", default=SelectSpec.max_fwhm,
        help="leave out frames whose stars are wider: pixels, 3s for three sigmas above the median of the frames, "
        f"2x for twice the median, or none (default: {SelectSpec.max_fwhm})",
    )  # fmt: skip
    for name, what in (
        ("--max-eccentricity", "whose stars are longer: sqrt(1 - (b/a)^2), 0 to 1"),
        ("--max-background", "whose sky is brighter: ADU"),
        ("--min-stars", "with fewer stars: a number"),
    ):
        group.add_argument(name, metavar="LIMIT", help=f"leave out frames {what}, or such as 3s or 2x (default: none)")
    group.add_argument(
        "--drop-worst", type=float, default=0.0, metavar="PERCENT",
        help="leave out this share of the registered frames, those that show faint stars worst (default: 0)",
    )  # fmt: skip
    _add_choice(group, "--interpolation", "interpolation", InterpolationName, StackSpec.interpolation, "resampling")
    group.add_argument(
        "--bayer", type=_bayer, default="auto", metavar="PATTERN",
        help=f"colour mosaic of the frames: auto (as their headers say), none, {', '.join(BAYER_PATTERNS)} "
        "(default: auto)",
    )  # fmt: skip


def _add_calibration(group: Group) -> None:
    for option, what in (
        ("--dark", "darks"), ("--flat", "flats"), ("--bias", "bias frames"), ("--dark-flat", "darks of the flats"),
    ):  # fmt: skip
        group.add_argument(
            option, action="append", default=[], metavar="PATH",
            help=f"{what}: a master, a file, a folder or a quoted pattern; may be repeated (default: none)",
        )  # fmt: skip
    group.add_argument(
        "--calibration", metavar="DIR",
        help="folder with any of these, told apart by IMAGETYP or their names; what fits is used (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--scale-dark",
        action="store_true",
        help="scale darks to other exposures where none has that of a frame; needs bias frames (default: no)",
    )
    group.add_argument(
        "--temperature-tolerance", type=float, default=CalibrationSpec.temperature_tolerance, metavar="DEG",
        help="between a frame and its dark, degrees (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--calibration-cache", metavar="DIR", help="folder that keeps masters (default: the user's cache folder)"
    )
    group.add_argument(
        "--cosmetic", default=CalibrationSpec.cosmetic, metavar="auto|off|FILE",
        help="replace defective photosites: auto learns them from the frames; or a map of them, a FITS mask or a list "
        "(default: auto)",
    )  # fmt: skip


def calibration_of(args: argparse.Namespace) -> CalibrationSpec:
    """Return what the options of calibration ask for; raises SpecError for what contradicts itself."""
    return CalibrationSpec(
        dark=tuple(args.dark),
        flat=tuple(args.flat),
        bias=tuple(args.bias),
        dark_flat=tuple(args.dark_flat),
        library=args.calibration,
        scale_dark=args.scale_dark,
        temperature_tolerance=args.temperature_tolerance,
        cache=args.calibration_cache,
        cosmetic=args.cosmetic,
    )


def _users(option: str) -> str:
    """Say which rejections read an option of ``StackSpec``, as they are asked for on the command line."""
    users = [row for row in REJECTIONS if option in row.options]
    return ", ".join(
        f"--reject {row.name}" if row.choice is None else f"--{row.choice[0].replace('_', '-')} {row.choice[1]}"
        for row in users
    )


def _add_stacking(group: Group) -> None:
    default = StackSpec
    _add_choice(group, "--reject", "rejection", RejectName, default.reject, "outlier rejection")
    for side, at in (("low", 0), ("high", 1)):
        limited = {row.name: row.unit for row in REJECTIONS if row.unit != "none"}
        own = ", ".join(f"{DEFAULT_KAPPA[name][at]:g} {name}" for name in limited)
        others = "".join(f"; {unit} for {name}" for name, unit in limited.items() if unit != "sigma")
        text = f"rejection limit on the {side} side, sigma{others} (default: {own})"
        group.add_argument(f"--kappa-{side}", type=float, metavar="K", help=text)
    group.add_argument(
        "--winsor-limits", type=_limits, metavar="L,H",
        help=f"fractions winsorized at each end; only for {_users('winsor_limits')} (default: 0.05,0.05)",
    )  # fmt: skip
    _add_choice(group, "--wsc-impl", "winsorizing (wsc_impl)", WscImpl, default.wsc_impl, "kind of winsorizing")
    group.add_argument(
        "--no-spare-stars", dest="spare_stars", action="store_false",
        help="reject in stars as in the sky, though seeing makes frames differ there (default: spare what it explains)",
    )  # fmt: skip
    _add_choice(group, "--line-fit", "line fit", LineFit, default.line_fit, "how linear_fit_clip fits its line")
    _add_choice(group, "--norm --normalize", "normalisation", NormalizeName, default.normalize, "matching of levels")
    group.add_argument(
        "--flatten", nargs="?", const="on", default=default.flatten, choices=get_args(FlattenName),
        help="make the backgrounds of all frames like the reference's, by a low-order surface each; auto where they "
        f"differ significantly; without a word: on (default: {default.flatten})",
    )  # fmt: skip
    _add_choice(group, "--weight", "weight", WeightName, default.weight, "weights of the frames")
    group.add_argument(
        "--drizzle", type=float, default=default.drizzle, metavar="SCALE",
        help="drizzle onto a grid SCALE times as fine, 1 to 3; mosaics without demosaicing (default: interpolate)",
    )  # fmt: skip
    group.add_argument(
        "--pixfrac", type=float, metavar="P",
        help="drizzle: side of the drop that a pixel shrinks to, above 0 to 1 (default: 1)",
    )  # fmt: skip
    _add_choice(group, "--combine", "combination", CombineName, default.combine, "combination of what is kept")
    group.add_argument(
        "--radial-weight", action="store_true", help="give less weight to the corners of frames (default: no)"
    )
    group.add_argument(
        "--equalize-rgb", action=argparse.BooleanOptionalAction, default=default.equalize_rgb,
        help="scale the channels of the result to one median (default: no)",
    )  # fmt: skip


def _add_resources(group: Group) -> None:
    _add_choice(
        group, "--device", "device", DeviceName, "auto",
        "where to stack: auto takes a GPU that works, else the CPU; gpu is auto with --require-gpu",
    )  # fmt: skip
    group.add_argument("--require-gpu", action="store_true", help="fail rather than use the CPU (default: no)")
    group.add_argument(
        "--gpus", metavar="all|N|IDS",
        help="cards that share a stack: all, how many (2), or which ones (0,2) (default: CUDA's current device)",
    )  # fmt: skip
    group.add_argument(
        "--memory", type=_memory, metavar="SIZE",
        help="memory to use, e.g. 4GB, 512MiB or 50%% of what is available (default: 50%%, or up to 1GB of 80%%)",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=_positive, metavar="N", help="threads (default: the cores this process may use)"
    )
    group.add_argument(
        "--self-check", action=argparse.BooleanOptionalAction, default=True,
        help="make some pixels of the result again by plain definitions, and compare (default: yes)",
    )  # fmt: skip
    group.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="folder of the journal, in which a run keeps what it measured, for the next one (default: beside OUT)",
    )  # fmt: skip
    group.add_argument(
        "--no-resume",
        action="store_true",
        help="neither go on where an earlier run was nor keep a journal (default: do)",
    )
    group.add_argument("--fresh", action="store_true", help="forget what the journal holds (default: no)")


def _add_results(group: Group) -> None:
    group.add_argument(
        "--maps", action="store_true",
        help="write the maps COVERAGE, WEIGHT, REJ_LOW, REJ_HIGH and ERR into OUT too (default: no)",
    )  # fmt: skip
    group.add_argument(
        "--series", type=_series, metavar="LENGTH",
        help="many stacks in time beside OUT, OUT_s0001.fits and so on, from one registration: 5min, 90s, 1h, or 50 "
        "frames each (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--targets", type=Path, metavar="CSV",
        help="positions (columns ra, dec or x, y, and name) whose light curve the series tells (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--export", action="append", default=[], type=_path_ending(*EXPORT_SUFFIXES), metavar="FILE",
        help="a copy of the image for other programs: .xisf, .tif, .png (16 bits) or .fits.fz; may be repeated "
        "(default: none)",
    )  # fmt: skip
    group.add_argument(
        "--export-bits", type=int, choices=(16, 32), default=32, help="of .xisf and .tif (default: %(default)s)"
    )
    group.add_argument(
        "--preview", type=_path_ending(".png", instead="none"), metavar="PNG",
        help="stretched picture to write, or none (default: OUT with .png)",
    )  # fmt: skip
    group.add_argument(
        "--preview-stretch", choices=get_args(StretchName), default="unlinked",
        help="curves of the preview's colours: unlinked, one each, a grey sky; linked, one for all; neutral, one for "
        "all on a grey sky (default: unlinked)",
    )  # fmt: skip
    group.add_argument(
        "--preview-size", type=_picture_size, default=PREVIEW_SIDE_PX, metavar="PX",
        help="longest side of the preview in pixels, or half, or full (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--annotate", action="store_true",
        help="write name, exposure, scale bar and north onto the preview; needs Pillow (default: no)",
    )  # fmt: skip
    group.add_argument(
        "--before-after", type=_path_ending(".png"), metavar="PNG",
        help="write the middle of one frame and of the stack beside each other (default: no)",
    )  # fmt: skip
    group.add_argument(
        "--report", type=Path, metavar="DIR",
        help="write a page about the stack into this folder, one HTML file named as OUT; needs jinja2 and matplotlib "
        "(default: no)",
    )  # fmt: skip
    group.add_argument(
        "--json", type=_path_ending(".json", instead="-"), metavar="FILE",
        help="write the report as JSON; - is the standard output (default: no)",
    )  # fmt: skip
    group.add_argument(
        "--overwrite", action="store_true", help="replace OUT and the files beside it if they exist (default: no)"
    )


def _add_messages(parser: argparse.ArgumentParser) -> None:
    messages = parser.add_argument_group("messages")
    messages.add_argument(
        "--log", type=Path, metavar="FILE", help="write all messages, details too, to a file as well (default: no)"
    )
    group = messages.add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="show errors only")
    group.add_argument("--verbose", action="store_true", help="show details, and where an error comes from")


def add_view(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``view``."""
    parser.add_argument("tile", metavar="TILE", type=Path, help="FITS file that stack wrote")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="folder for the page, one HTML file (default: a temporary one)"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="only write the page and say where (default: open it)"
    )
    _add_messages(parser)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    parser.add_argument(
        "folder", nargs="?", default="demo", metavar="DIR", type=Path,
        help="new folder, or that of an earlier demo, whose files are replaced (default: demo)",
    )  # fmt: skip
    _add_messages(parser)


def add_simulate(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``simulate``."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder for the frames; made if there is none")
    group = parser.add_argument_group("what is simulated")
    spec = SimulationSpec
    numbers: tuple[tuple[str, Callable[[str], Any], str, str, str], ...] = (
        ("--frames", int, "n_frames", "N", f"number of frames (default: {spec.n_frames})"),
        ("--size", _size, "size", "HxW", f"rows and columns of a frame (default: {spec.height}x{spec.width})"),
        ("--seed", int, "seed", "N", f"another seed, another sky (default: {spec.seed})"),
        ("--bayer", str, "bayer", "NAME", f"{', '.join(BAYER_PATTERNS)}, none (grey) or rgb (default: {spec.bayer})"),
        ("--stars", int, "n_stars", "N", "stars expected in a frame (default: one per 1,000 pixels)"),
        ("--fwhm", float, "fwhm_px", "PX", f"mean seeing, pixels (default: {spec.fwhm_px:g})"),
        ("--dither", float, "dither_px", "PX", f"largest shift along each axis, pixels (default: {spec.dither_px:g})"),
        ("--wander", _drift, "wander_px", "X,Y", "drift of the pointing during the session, pixels (default: none)"),
        ("--rotation", float, "rotation_deg", "DEG", f"turn of the field, degrees (default: {spec.rotation_deg:g})"),
        ("--gradient", float, "gradient", "ADU", f"sky from centre to corner (default: {spec.gradient:g})"),
        ("--nebula", float, "nebula", "ADU", f"brightness of the nebula, 0 for none (default: {spec.nebula:g})"),
        ("--trails", float, "trail_fraction", "F", f"share of frames with a trail (default: {spec.trail_fraction:g})"),
        ("--wcs-error", float, "wcs_error_px", "PX", f"error of the WCS, pixels (default: {spec.wcs_error_px:g})"),
    )
    for option, convert, field, metavar, text in numbers:
        group.add_argument(option, type=convert, dest=field, default=argparse.SUPPRESS, metavar=metavar, help=text)
    group.add_argument(
        "--no-wcs", action="store_false", dest="with_wcs", default=argparse.SUPPRESS, help="write no WCS into headers"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="use a folder that is not empty; replaces earlier simulated frames"
    )
    _add_messages(parser)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``doctor``."""
    parser.add_argument("--clear-kernels", action="store_true", help="remove all compiled kernels and say how many")
    parser.set_defaults(quiet=False, verbose=False, log=None)


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the argument of ``completion``."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell; its script goes to standard output")
    parser.set_defaults(quiet=False, verbose=False, log=None)


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench``."""
    group = parser.add_argument_group("what is timed")
    group.add_argument("--frames", type=_positive, default=50, metavar="N", help="frames of the stack (default: 50)")
    group.add_argument(
        "--size", type=_size, default=(1080, 1920), metavar="HxW",
        help="rows and columns of a frame; fewer rows where the memory is short (default: 1080x1920)",
    )  # fmt: skip
    group.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 for grey, 3 for colour (default: 3)")
    names = ", ".join(["mean", "median", *(name for name in get_args(RejectName) if name != "none")])
    group.add_argument(
        "--methods", type=_methods, metavar="LIST", help=f"names with commas between, of: {names} (default: all)"
    )
    group.add_argument(
        "--files", action="store_true", help="stack from 16-bit FITS files in a temporary folder too (default: no)"
    )
    group.add_argument(
        "--subs", type=_count, default=16, metavar="N",
        help="raw subs of the whole job, which is timed stage by stage; 0 leaves it out (default: 16)",
    )  # fmt: skip
    group.add_argument("--repeat", type=_positive, default=3, metavar="K", help="times, for a median (default: 3)")
    group = parser.add_argument_group("resources and results")
    group.add_argument(
        "--workers", type=_positive, metavar="N", help="threads (default: the cores this process may use)"
    )
    group.add_argument(
        "--memory", type=_memory, metavar="SIZE",
        help="memory for frames and stack together, e.g. 4GB or 50%% of what is available (default: 50%%)",
    )  # fmt: skip
    group.add_argument(
        "--json", type=_path_ending(".json", instead="-"), metavar="FILE",
        help="write the figures as JSON; - is the standard output, without the table (default: no)",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="replace FILE if it exists (default: no)")
    _add_messages(parser)


def add_checkout(parser: argparse.ArgumentParser) -> None:
    """Add the argument of ``attach`` and ``detach``."""
    parser.add_argument("checkout", metavar="CHECKOUT", type=Path, help="folder of a ZeMosaic checkout")
    _add_messages(parser)


def _methods(text: str) -> tuple[str, ...]:
    from zemosaic_phase3.app.bench import chosen_methods

    return tuple(_as_argument(lambda: chosen_methods(text.split(","))))
