"""The command line: ``zemosaic-phase3 stack``, ``demo``, ``simulate``, ``doctor``, ``bench``, ``attach``, ``detach``.

Exit status: 0 done, 1 nothing stacked or failed, 2 wrong usage, 130 interrupted. Whatever can be known to be wrong is
said before the first frame is read.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, get_args

import parallel_utils
import zemosaic_report as reporting
from zemosaic_headers import BAYER_PATTERNS
from zemosaic_pipeline import check_output, timed, without_output, without_tiles
from zemosaic_simulate import SimulationSpec, simulate
from zemosaic_spec import (
    DEFAULT_KAPPA,
    CombineName,
    DeviceName,
    InterpolationName,
    LineFit,
    NoFramesError,
    NormalizeName,
    OutputError,
    RegisterMode,
    RegisterSpec,
    RejectName,
    SelectSpec,
    SpecError,
    StackSpec,
    TransformName,
    WeightName,
    WscImpl,
    ZeMosaicError,
    __version__,
    canonical,
)
from zemosaic_utils import expand_inputs, real_paths

if TYPE_CHECKING:
    from rich.console import Console

PROGRAM: Final = "zemosaic-phase3"
FAILED, USAGE, INTERRUPTED = 1, 2, 130
OUTPUT_SUFFIXES: Final = (".fits", ".fit", ".fts")
GARBAGE_OBJECTS: Final = 5000  # made since the last look for garbage, until the next; Python's own limit is 700
NO_PREVIEW: Final = Path("none")
STANDARD_OUTPUT: Final = Path("-")
STACK_STAGES: Final = ("measure", "register", "stack")
BENCH_STAGES: Final = ("make", "bench")

# --------------------------------------------------------------------------- values


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
    return int(_as_argument(lambda: parallel_utils.parse_memory(text)))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _limits(text: str) -> tuple[float, float]:
    low, comma, high = text.partition(",")
    try:
        if comma:
            return float(low), float(high)
    except ValueError:
        pass  # said below, the same as for a missing comma
    raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a comma between, e.g. 0.05,0.05")


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


def _path_ending(*suffixes: str, instead: str | None = None) -> Callable[[str], Path]:
    """Return a converter for a file to write: it must end in one of ``suffixes``, or be the word ``instead``."""

    def convert(text: str) -> Path:
        if text != instead and not text.lower().endswith(suffixes):
            also = "" if instead is None else f", or be {instead!r}"
            raise argparse.ArgumentTypeError(f"{text!r} must end in {' or '.join(suffixes)}{also}")
        return Path(text)

    return convert


# --------------------------------------------------------------------------- the parser


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; ``args.run`` is the command, ``args.parser`` its own parser."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Turns a folder of astronomical sub-frames into one master image.",
        epilog=f"'{PROGRAM} COMMAND --help' lists the options of a command. Exit status: 0 done, 1 nothing stacked or "
        "failed, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add, run, name, usage, text in (
        (_add_stack, run_stack, "stack", "INPUT... -o OUT [options]", "register and stack frames into one FITS image"),
        (_add_demo, run_demo, "demo", "[DIR]", "simulate frames, stack them, compare the result with the truth"),
        (_add_simulate, run_simulate, "simulate", "DIR [options]", "write seeded Seestar-like frames and their truth"),
        (_add_doctor, run_doctor, "doctor", "", "show versions, cores, memory, GPU, and what stack would choose"),
        (_add_bench, run_bench, "bench", "[options]", "time every method on this machine and say what limits it"),
        (_add_checkout, run_attach, "attach", "CHECKOUT", "make a ZeMosaic checkout use this library"),
        (_add_checkout, run_detach, "detach", "CHECKOUT", "undo attach, without a trace"),
    ):
        command = commands.add_parser(
            name,
            usage=f"{PROGRAM} {name} {usage}".rstrip(),
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            allow_abbrev=False,
        )
        command.set_defaults(run=run, parser=command)
        add(command)
    return parser


def _add_stack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="files, folders (their FITS and .npy files) or quoted patterns"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", type=_path_ending(*OUTPUT_SUFFIXES),
        help="FITS file to write, ending in .fits, .fit or .fts",
    )  # fmt: skip
    _add_registration(parser.add_argument_group("frames and registration"))
    _add_stacking(parser.add_argument_group("rejection and combination"))
    _add_resources(parser.add_argument_group("device and resources"))
    _add_results(parser.add_argument_group("results"))
    _add_messages(parser)


Group = argparse._ArgumentGroup  # argparse gives its groups no public name


def _add_choice(group: Group, option: str, kind: str, allowed: object, default: str, meaning: str) -> None:
    names = get_args(allowed)
    group.add_argument(
        option, type=_name(kind, allowed), default=default, metavar="NAME",
        help=f"{meaning}; one of: {', '.join(names)} (default: {default})",
    )  # fmt: skip


def _add_registration(group: Group) -> None:
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
    group.add_argument(
        "--max-fwhm", type=float, metavar="PX", help="leave out frames whose stars are wider, pixels (default: none)"
    )
    group.add_argument(
        "--min-stars",
        type=_positive,
        metavar="N",
        help="leave out frames with fewer stars (default: none)",
    )
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


def _add_stacking(group: Group) -> None:
    default = StackSpec
    _add_choice(group, "--reject", "rejection", RejectName, default.reject, "outlier rejection")
    for side, at in (("low", 0), ("high", 1)):
        own = ", ".join(
            f"{limits[at]:g} {name}" for name, limits in DEFAULT_KAPPA.items() if name not in ("none", "gesd")
        )
        text = f"rejection limit on the {side} side, sigma; a fraction for percentile_clip (default: {own})"
        group.add_argument(f"--kappa-{side}", type=float, metavar="K", help=text)
    group.add_argument(
        "--winsor-limits", type=_limits, metavar="L,H",
        help="fractions winsorized at each end; only for --wsc-impl legacy_quantile (default: 0.05,0.05)",
    )  # fmt: skip
    _add_choice(group, "--wsc-impl", "winsorizing (wsc_impl)", WscImpl, default.wsc_impl, "kind of winsorizing")
    _add_choice(group, "--line-fit", "line fit", LineFit, default.line_fit, "how linear_fit_clip fits its line")
    _add_choice(group, "--normalize", "normalisation", NormalizeName, default.normalize, "matching of levels")
    group.add_argument(
        "--flatten", action="store_true",
        help="make the backgrounds of all frames like the reference's, by a low-order surface each (default: no)",
    )  # fmt: skip
    _add_choice(group, "--weight", "weight", WeightName, default.weight, "weights of the frames")
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
        "--memory", type=_memory, metavar="SIZE",
        help="memory to use, e.g. 4GB, 512MiB or 50%% of what is available (default: 50%%)",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=_positive, metavar="N", help="threads (default: the cores this process may use)"
    )


def _add_results(group: Group) -> None:
    group.add_argument(
        "--maps", action="store_true",
        help="write COVERAGE, WEIGHT, REJ_LOW, REJ_HIGH and the table FRAMES into OUT too (default: no)",
    )  # fmt: skip
    group.add_argument(
        "--preview", type=_path_ending(".png", instead="none"), metavar="PNG",
        help="stretched picture to write, or none (default: OUT with .png)",
    )  # fmt: skip
    group.add_argument(
        "--json", type=_path_ending(".json", instead="-"), metavar="FILE",
        help="write the report as JSON; - is the standard output (default: no)",
    )  # fmt: skip
    group.add_argument(
        "--overwrite", action="store_true", help="replace OUT, the preview and the report if they exist (default: no)"
    )


def _add_messages(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("messages").add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="show errors only")
    group.add_argument("--verbose", action="store_true", help="show details, and where an error comes from")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", default="demo", metavar="DIR", type=Path,
        help="new folder, or that of an earlier demo, whose files are replaced (default: demo)",
    )  # fmt: skip
    _add_messages(parser)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
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


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(quiet=False, verbose=False)


def _add_bench(parser: argparse.ArgumentParser) -> None:
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


def _add_checkout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkout", metavar="CHECKOUT", type=Path, help="folder of a ZeMosaic checkout")
    _add_messages(parser)


def _methods(text: str) -> tuple[str, ...]:
    from zemosaic_bench import chosen_methods

    return tuple(_as_argument(lambda: chosen_methods(text.split(","))))


# --------------------------------------------------------------------------- stack


@dataclass(frozen=True)
class Outputs:
    """The files of a run; None: not wanted. The report may be ``STANDARD_OUTPUT``."""

    image: Path
    preview: Path | None = None
    report: Path | None = None

    def as_dict(self) -> dict[str, Path | None]:
        """Return the files by the labels that summary and report use."""
        return {"output": self.image, "preview": self.preview}


def _outputs(args: argparse.Namespace) -> Outputs:
    """Return the files to write, all different.

    Raises
    ------
    SpecError
        Two have one name.
    OutputError
        One could not be written when the work is done.
    """
    preview = args.output.with_suffix(".png") if args.preview is None else args.preview
    outputs = Outputs(args.output, None if preview == NO_PREVIEW else preview, args.json)
    files = [path for path in (outputs.image, outputs.preview, outputs.report) if path not in (None, STANDARD_OUTPUT)]
    if len({path.resolve() for path in files}) < len(files):
        raise SpecError(f"output, preview and report must be different files, not {', '.join(map(str, files))}")
    for path in files:
        check_output(path, overwrite=args.overwrite)
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is no regular file; choose another name")
    return outputs


def _specs(args: argparse.Namespace) -> tuple[StackSpec, RegisterSpec, SelectSpec]:
    """Return what the options ask for; raises SpecError for a value out of range."""
    if args.require_gpu and args.device == "cpu":
        raise SpecError("--require-gpu and --device cpu contradict each other")
    stack = StackSpec(
        normalize=args.normalize,
        weight=args.weight,
        reject=args.reject,
        wsc_impl=args.wsc_impl,
        line_fit=args.line_fit,
        kappa_low=args.kappa_low,
        kappa_high=args.kappa_high,
        winsor_limits=args.winsor_limits,
        combine=args.combine,
        equalize_rgb=args.equalize_rgb,
        radial_weight=args.radial_weight,
        interpolation=args.interpolation,
        flatten=args.flatten,
    )
    if args.winsor_limits is not None and not stack.is_legacy_winsor:
        raise SpecError("--winsor-limits needs --reject winsorized_sigma_clip --wsc-impl legacy_quantile")
    select = SelectSpec(max_fwhm=args.max_fwhm, min_stars=args.min_stars, drop_worst=args.drop_worst)
    return stack, RegisterSpec(mode=args.register, transform=args.transform), select


def _frames(args: argparse.Namespace, output: Path, console: Console) -> list[Path]:
    """List the frames; earlier results among the files of a folder are none of them.

    Raises
    ------
    NoFramesError
        There is none.
    OutputError
        The output is an input, and no earlier result.
    """
    found = expand_inputs(args.inputs)
    frames = without_tiles(without_output(found, args.inputs, output), args.inputs)
    if not frames:
        raise NoFramesError(f"no frames but finished stacks in: {', '.join(args.inputs)}")
    if not args.quiet and output.resolve() in real_paths(found):
        console.print(f"note: {output} lies among the inputs and is not stacked", soft_wrap=True)
    return frames


def _reference(name: str, frames: Sequence[Path]) -> str | None:
    """Return the reference as its input is named, however the user wrote its path; None chooses the best.

    Raises
    ------
    NoFramesError
        It is not among the frames.
    """
    if name == "auto":
        return None
    wanted = Path(name).resolve()
    same = [path for path, real in zip(frames, real_paths(frames), strict=True) if real == wanted]
    same = same or [path for path in frames if path.name == name]
    if not same:
        raise NoFramesError(f"the reference {name} is not among the {len(frames)} inputs; name one of them, or auto")
    return str(same[0])


def run_stack(args: argparse.Namespace, console: Console) -> None:
    """``stack``: register and stack frames into one FITS file, a preview and a report."""
    from zemosaic_warmup import kernels_compiled_beside
    from zemosaic_worker import stack_files

    stack, register, select = _specs(args)
    outputs = _outputs(args)
    frames = _frames(args, outputs.image, console)
    reference = _reference(args.reference, frames)
    reporting.announce_compilation(console, quiet=args.quiet)
    with (
        kernels_compiled_beside(stack, reporting.kernel_cache()),
        reporting.shown_progress(console, STACK_STAGES, quiet=args.quiet) as progress,
    ):
        tile = stack_files(
            frames,
            outputs.image,
            stack=stack,
            register=register,
            select=select,
            bayer=args.bayer,
            reference=reference,
            device=args.device,
            require_gpu=args.require_gpu,
            memory=args.memory,
            workers=args.workers,
            maps=args.maps,
            overwrite=args.overwrite,
            progress=progress,
        )
    if outputs.preview is not None:
        with timed(tile.report, "preview"):
            reporting.write_preview(tile, outputs.preview)
    wants_stdout = outputs.report == STANDARD_OUTPUT
    if outputs.report is not None:
        text = reporting.json_text(reporting.report_document(tile, outputs.as_dict()))
        if wants_stdout:
            sys.stdout.write(text)
        else:
            reporting.write_text(text, outputs.report)
    if not args.quiet:
        reporting.print_summary(
            console if wants_stdout else reporting.make_console(sys.stdout), tile, outputs.as_dict()
        )


# --------------------------------------------------------------------------- simulate, demo, doctor, bench


def run_simulate(args: argparse.Namespace, console: Console) -> None:
    """``simulate``: write frames and their truth into a folder."""
    known = SimulationSpec.__dataclass_fields__
    values = {name: value for name, value in vars(args).items() if name in known}
    if "size" in args:
        values["height"], values["width"] = args.size
    spec = SimulationSpec(**values)
    with reporting.shown_progress(console, ("simulate",), quiet=args.quiet) as progress:
        truth = simulate(spec, args.folder, overwrite=args.overwrite, progress=progress)
    if not args.quiet:
        facts = [
            ("frames", f"{spec.n_frames} of {spec.height} x {spec.width} pixels, {spec.bayer}, seed {spec.seed}"),
            ("stars", f"{len(truth.star_xy)}; {len(truth.trail_frame)} satellite trails"),
            ("folder", f"{args.folder}, truth in truth.json and truth.npz"),
        ]
        reporting.print_facts(reporting.make_console(sys.stdout), facts)


def run_demo(args: argparse.Namespace, console: Console) -> None:
    """``demo``: simulate, stack with the default options, compare with the truth."""
    import zemosaic_demo

    zemosaic_demo.run_demo(args.folder, console, quiet=args.quiet)


def run_doctor(_args: argparse.Namespace, _console: Console) -> None:
    """``doctor``: what there is, and what ``stack`` would choose."""
    reporting.print_facts(reporting.make_console(sys.stdout), reporting.machine_facts())


def run_bench(args: argparse.Namespace, console: Console) -> None:
    """``bench``: time every method, say what limits this machine."""
    import zemosaic_bench

    if args.json not in (None, STANDARD_OUTPUT):
        check_output(args.json, overwrite=args.overwrite)
    height, width = args.size
    spec = zemosaic_bench.BenchSpec(
        frames=args.frames,
        height=height,
        width=width,
        channels=args.channels,
        methods=args.methods or (),
        repeat=args.repeat,
        workers=args.workers,
        memory=args.memory,
        files=args.files,
    )
    reporting.announce_compilation(console, quiet=args.quiet)
    with reporting.shown_progress(console, BENCH_STAGES, quiet=args.quiet) as progress:
        result = zemosaic_bench.run_bench(spec, progress)
    text = reporting.json_text(result.as_dict())
    if args.json == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return
    if args.json is not None:
        reporting.write_text(text, args.json)
    if not args.quiet:
        zemosaic_bench.print_bench(reporting.make_console(sys.stdout), result)


# --------------------------------------------------------------------------- attach, detach


def run_attach(args: argparse.Namespace, _console: Console) -> None:
    """``attach``: put our functions into a ZeMosaic checkout, and say what was done."""
    import zemosaic_attach

    done = zemosaic_attach.attach(args.checkout)
    facts = [("attached", str(done.checkout))]
    facts += _continued("put there", [f"{folder}/ (three small files, hidden from git)" for folder in done.folders])
    facts += _continued("replaced", done.replaced)
    facts += _continued("left alone", [f"{name}: {reason}" for name, reason in done.kept.items()])
    facts.append(("takes effect", "at the next start of ZeMosaic; none of its files was changed"))
    if done.missing:
        facts.append(("attention", f"the Python that runs ZeMosaic needs {', '.join(done.missing)} too"))
    facts.append(("to undo", f"{PROGRAM} detach {done.checkout}"))
    if not args.quiet:
        reporting.print_facts(reporting.make_console(sys.stdout), facts)


def run_detach(args: argparse.Namespace, _console: Console) -> None:
    """``detach``: take out what ``attach`` put there."""
    import zemosaic_attach

    done = zemosaic_attach.detach(args.checkout)
    if not args.quiet:
        facts = [("detached", str(done.checkout)), *_continued("removed", [f"{folder}/" for folder in done.folders])]
        reporting.print_facts(reporting.make_console(sys.stdout), facts)


def _continued(label: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Label the first of several lines."""
    return [(label if k == 0 else "", line) for k, line in enumerate(lines)]


# --------------------------------------------------------------------------- front door


@contextmanager
def _printable_streams() -> Iterator[None]:
    """Let file names that the terminal's encoding lacks be printed as escapes rather than end the run."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for cyclic garbage less often: most objects of a run are those of packages, which stay.

    With its own thresholds it takes 0.05 s of a start.
    """
    before = gc.get_threshold()
    gc.set_threshold(GARBAGE_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default: those of the process.

    Returns
    -------
    int
        The exit status: 0 done, 1 failed, 130 interrupted.

    Raises
    ------
    SystemExit
        With 2 after a wrong usage, with 0 after ``--help`` and ``--version``.
    """
    args = build_parser().parse_args(argv)
    with _printable_streams(), _rare_collections():
        console = reporting.make_console(sys.stderr)
        try:
            with reporting.shown_log(console, quiet=args.quiet, verbose=args.verbose):
                args.run(args, console)
        except SpecError as exc:
            args.parser.error(str(exc))
        except KeyboardInterrupt:
            console.print(f"{PROGRAM}: interrupted", soft_wrap=True)
            return INTERRUPTED
        except (ZeMosaicError, OSError, MemoryError) as exc:
            if args.verbose:
                console.print_exception()
            text = f"out of memory ({exc}); use a smaller --memory" if isinstance(exc, MemoryError) else str(exc)
            console.print(f"{PROGRAM}: error: {text}", style="red", soft_wrap=True)
            return FAILED
    return 0


def run_program() -> NoReturn:
    """Run the command line as a program of its own, and end the process at once.

    All files are closed when :func:`main` returns, and the system takes back the memory faster than Python gives up
    every object of every package, which takes 0.03 s, and 0.3 s where it looks for garbage among them.
    """
    status = main()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # as under pythonw
                stream.flush()
    except (OSError, ValueError):  # a closed pipe, a full disk: Python's own way out reports it
        sys.exit(status)
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    run_program()
