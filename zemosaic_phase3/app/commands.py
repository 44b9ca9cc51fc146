"""The commands of the command line."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zemosaic_phase3.app import console as console_module
from zemosaic_phase3.app import doctor, summary
from zemosaic_phase3.app.config import save_config
from zemosaic_phase3.app.dry_run import run_dry
from zemosaic_phase3.app.groups import run_groups, say_if_few
from zemosaic_phase3.app.log_file import log_summary, with_log_of_progress
from zemosaic_phase3.app.options import NO_PREVIEW, calibration_of
from zemosaic_phase3.app.signals import PROGRAM
from zemosaic_phase3.app.together import check_exports, check_together
from zemosaic_phase3.errors import OutputError, SpecError
from zemosaic_phase3.extras import install
from zemosaic_phase3.io.export import write_export
from zemosaic_phase3.io.inputs import real_paths
from zemosaic_phase3.pipeline.frame_count import LeastFrames
from zemosaic_phase3.pipeline.input_list import Inputs
from zemosaic_phase3.pipeline.outputs import Wanted, check_output
from zemosaic_phase3.pipeline.survey import named_output, survey
from zemosaic_phase3.progress import timed
from zemosaic_phase3.report.needs import require
from zemosaic_phase3.report.page import check_page, write_page
from zemosaic_phase3.report.pictures import pair_of
from zemosaic_phase3.report.png import write_png
from zemosaic_phase3.report.preview import beside, write_preview
from zemosaic_phase3.report.story import read_story, story_of
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import RegisterSpec, SelectSpec, StackSpec

if TYPE_CHECKING:
    from rich.console import Console

    from zemosaic_phase3.pipeline.tile import Tile

STANDARD_OUTPUT: Final = Path("-")
STACK_STAGES: Final = ("measure", "register", "stack")
BENCH_STAGES: Final = ("make", "bench", "simulate")


@dataclass(frozen=True)
class Outputs:
    """The files of a run; None: not wanted. The report may be ``STANDARD_OUTPUT``."""

    image: Path
    preview: Path | None = None
    report: Path | None = None
    pair: Path | None = None
    page: Path | None = None

    def as_dict(self) -> dict[str, Path | None]:
        """Return the files by the labels that summary and report use."""
        return {"output": self.image, "preview": self.preview, "picture": self.pair, "report": self.page}


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
    page = None if args.report is None else check_page(args.report, args.output, overwrite=args.overwrite)
    if args.annotate and preview != NO_PREVIEW:
        require("--annotate", "PIL")
    outputs = Outputs(args.output, None if preview == NO_PREVIEW else preview, args.json, args.before_after, page)
    wanted = (outputs.image, outputs.preview, outputs.report, outputs.pair)
    files = [path for path in wanted if path not in (None, STANDARD_OUTPUT)]
    folders = [] if args.report is None else [args.report]
    if len(set(real_paths([*files, *folders]))) < len(files) + len(folders):
        raise SpecError(f"output, preview and report must be different files, not {', '.join(map(str, files))}")
    for path in files:
        check_output(path, overwrite=args.overwrite)
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is no regular file; choose another name")
    check_exports(args, files)
    return outputs


def stack_spec_of(args: argparse.Namespace) -> StackSpec:
    """Return how frames are combined; raises SpecError for a value out of range."""
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
        framing=args.framing,
        spare_stars=args.spare_stars,
        drizzle=args.drizzle,
        pixfrac=1.0 if args.pixfrac is None else args.pixfrac,
    )
    if args.pixfrac is not None and not stack.drizzle:
        raise SpecError("--pixfrac needs --drizzle SCALE: without it pixels are not dropped, but interpolated")
    if args.winsor_limits is not None and not stack.is_legacy_winsor:
        raise SpecError("--winsor-limits needs --reject winsorized_sigma_clip --wsc-impl legacy_quantile")
    return stack


def specs_of(args: argparse.Namespace) -> tuple[StackSpec, RegisterSpec, SelectSpec]:
    """Return what the options ask for; raises SpecError for a value out of range."""
    if args.require_gpu and args.device == "cpu":
        raise SpecError("--require-gpu and --device cpu contradict each other")
    if args.gpus is not None and args.device == "cpu":
        raise SpecError("--gpus and --device cpu contradict each other")
    if args.no_resume and (args.fresh or args.cache is not None):
        raise SpecError("--no-resume keeps no journal, so that --fresh and --cache have no meaning with it")
    stack = stack_spec_of(args)
    select = SelectSpec(
        max_fwhm=args.max_fwhm,
        max_eccentricity=args.max_eccentricity,
        max_background=args.max_background,
        min_stars=args.min_stars,
        drop_worst=args.drop_worst,
    )
    return stack, RegisterSpec(mode=args.register, transform=args.transform), select


def run_stack(args: argparse.Namespace, console: Console) -> int:
    """``stack``: register and stack frames into one FITS file, a preview and a report; returns the exit status."""
    if not args.inputs:
        raise SpecError("no input was named; name files, folders or quoted patterns")
    if args.save_config is not None:
        save_config(args.save_config, args.to_save, args.parser, overwrite=args.overwrite)
    specs = specs_of(args)
    check_together(args)
    if args.output is None:
        args.output = named_output(
            args.inputs,
            bayer=args.bayer,
            filter=args.filter,
            recursive=args.recursive,
            several=args.group_by is not None,
        )
        if args.cache is None and not args.no_resume:
            args.cache = Path()  # the name changes with the number of frames, and the journal goes on
    if args.dry_run and args.group_by is None:
        outputs = _outputs(args)
        reference = None if args.reference == "auto" else args.reference
        found = survey(
            args.inputs,
            args.output,
            bayer=args.bayer,
            filter=args.filter,
            recursive=args.recursive,
            reference=reference,
        )
        report = None if outputs.report == STANDARD_OUTPUT else outputs.report
        wanted = Wanted(outputs.image, args.maps, outputs.preview, report)
        return run_dry(args, found, (specs[0], specs[1], calibration_of(args)), wanted, console)
    if args.group_by is None:
        return _stack_once(args, args.inputs, console)
    return run_groups(args, console, _stack_once)


def _stack_once(args: argparse.Namespace, inputs: Sequence[str] | Inputs, console: Console) -> int:
    """Stack inputs into the files that the options name; returns the exit status."""
    return say_if_few(_stacked(args, inputs, console), console)


def run_watch(args: argparse.Namespace, console: Console) -> int:
    """``watch``: a stack that grows with the frames in a folder; returns the exit status."""
    from zemosaic_phase3.app import watch

    specs_of(args)
    calibration_of(args)
    check_together(args)

    def stack_quietly(args: argparse.Namespace, inputs: Sequence[str], console: Console) -> Tile:
        return _stacked(argparse.Namespace(**{**vars(args), "quiet": not args.verbose}), inputs, console)

    return watch.run_watch(args, console, stack_quietly)


def _stacked(args: argparse.Namespace, inputs: Sequence[str] | Inputs, console: Console) -> Tile:
    """Stack inputs into the files that the options name."""
    from zemosaic_phase3.engine.warmup import kernels_compiled_beside
    from zemosaic_phase3.pipeline.stack_files import stack_files

    stack, register, select = specs_of(args)
    calibration = calibration_of(args)
    outputs = _outputs(args)
    cold = console_module.announce_compilation(console, quiet=args.quiet)
    with (
        kernels_compiled_beside(stack, registers=register.mode != "none"),
        console_module.shown_progress(console, STACK_STAGES, quiet=args.quiet, cold=cold) as progress,
    ):
        tile = stack_files(
            inputs,
            outputs.image,
            stack=stack,
            register=register,
            select=select,
            bayer=args.bayer,
            calibration=calibration,
            reference=None if args.reference == "auto" else args.reference,
            device=args.device,
            require_gpu=args.require_gpu,
            gpus=args.gpus,
            memory=args.memory,
            workers=args.workers,
            maps=args.maps,
            overwrite=args.overwrite,
            preview=outputs.preview,
            report=None if outputs.report == STANDARD_OUTPUT else outputs.report,
            self_check=args.self_check,
            filter=args.filter,
            recursive=args.recursive,
            min_frames=args.min_frames or LeastFrames.of(None, fails="one"),
            comet=args.comet,
            resume=not args.no_resume,
            fresh=args.fresh,
            cache=args.cache,
            series=args.series,
            targets=args.targets,
            command=args.command_line,
            progress=progress if args.log is None else with_log_of_progress(progress),
        )
    if outputs.preview is not None:
        with timed(tile.report, "preview"):
            write_preview(
                tile, outputs.preview, size=args.preview_size, colours=args.preview_stretch, annotate=args.annotate
            )
    for path in args.export:
        with timed(tile.report, "export"):
            write_export(tile.image, tile.header, path, bits=args.export_bits, overwrite=args.overwrite)
    if outputs.pair is not None:
        write_pair(tile, outputs)
    if args.report is not None:
        with timed(tile.report, "report"):
            write_page(story_of(tile, outputs.image.name), args.report)
    wants_stdout = outputs.report == STANDARD_OUTPUT
    if outputs.report is not None:
        document = summary.report_document(tile, outputs.as_dict())
        text = summary.json_text(document)
        if wants_stdout:
            print_report(text, f"the stack is written to {outputs.image}")
        else:
            summary.write_text(text, outputs.report)
    if args.log is not None:
        log_summary(tile, outputs.as_dict())
    if not args.quiet:
        summary.print_summary(
            console if wants_stdout else console_module.make_console(sys.stdout), tile, outputs.as_dict()
        )
    return tile


def write_pair(tile: Tile, outputs: Outputs) -> None:
    """Write one frame and the stack beside each other; where that cannot be, it is a note of the run."""
    pair = pair_of(story_of(tile, outputs.image.name))
    if pair is None or outputs.pair is None:
        tile.report.warnings.append(f"{outputs.pair}: not written: no frame lies on the grid of the stack as it is")
    else:
        write_png(beside(*pair), outputs.pair, flip_vertical=False)


def run_view(args: argparse.Namespace, _console: Console) -> None:
    """``view``: write the page of a tile, into a folder or a temporary one, and open it in the browser."""
    folder = args.report
    if folder is not None:
        check_page(folder, args.tile, overwrite=True)
    else:
        require("view")
    story = read_story(args.tile)
    page = write_page(story, Path(tempfile.mkdtemp(prefix="zemosaic-")) if folder is None else folder).absolute()
    is_open = not args.no_browser and has_display() and webbrowser.open(page.as_uri())
    facts = [("report", str(page)), *([] if is_open else [("", "open it in a browser")])]
    if not args.quiet:
        summary.print_facts(console_module.make_console(sys.stdout), facts)


def has_display() -> bool:
    """Return whether a browser has where to show a window; without, some would take the terminal."""
    return os.name == "nt" or sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def print_report(text: str, what_is_safe: str = "") -> None:
    """Write a report to the standard output, where it is a result; a reader that ends early has what it wanted.

    Raises
    ------
    OutputError
        It cannot be written; says what was written already.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        return
    except (OSError, ValueError) as exc:
        safe = f"; {what_is_safe}" if what_is_safe else ""
        raise OutputError(f"the report could not be written to the standard output ({exc}){safe}") from exc


def run_simulate(args: argparse.Namespace, console: Console) -> None:
    """``simulate``: write frames and their truth into a folder."""
    known = SimulationSpec.__dataclass_fields__
    values = {name: value for name, value in vars(args).items() if name in known}
    if "size" in args:
        values["height"], values["width"] = args.size
    spec = SimulationSpec(**values)
    with console_module.shown_progress(console, ("simulate",), quiet=args.quiet) as progress:
        truth = simulate(spec, args.folder, overwrite=args.overwrite, progress=progress)
    if not args.quiet:
        facts = [
            ("frames", f"{spec.n_frames} of {spec.height} x {spec.width} pixels, {spec.bayer}, seed {spec.seed}"),
            ("stars", f"{len(truth.star_xy)}; {len(truth.trail_frame)} satellite trails"),
            ("folder", f"{args.folder}, truth in truth.json and truth.npz"),
        ]
        summary.print_facts(console_module.make_console(sys.stdout), facts)


def run_demo(args: argparse.Namespace, console: Console) -> None:
    """``demo``: simulate, stack with the default options, compare with the truth."""
    from zemosaic_phase3.app import demo

    demo.run_demo(args.folder, console, quiet=args.quiet)


def run_doctor(args: argparse.Namespace, _console: Console) -> None:
    """``doctor``: what there is, and what ``stack`` would choose."""
    console = console_module.make_console(sys.stdout)
    if args.clear_kernels:
        console.print(doctor.clear_kernel_cache(), soft_wrap=True)
    else:
        summary.print_facts(console, doctor.machine_facts())


def run_completion(args: argparse.Namespace, _console: Console) -> None:
    """``completion``: a script for a shell, made by the package ``shtab``."""
    try:
        import shtab
    except ImportError as exc:
        raise SpecError(f"completion needs the package shtab; {install('completion')}") from exc
    sys.stdout.write(shtab.complete(args.root, args.shell))


def run_bench(args: argparse.Namespace, console: Console) -> None:
    """``bench``: time every method, say what limits this machine."""
    from zemosaic_phase3.app import bench, bench_job

    if args.json not in (None, STANDARD_OUTPUT):
        check_output(args.json, overwrite=args.overwrite)
    height, width = args.size
    spec = bench.BenchSpec(
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
    cold = console_module.announce_compilation(console, quiet=args.quiet)
    with console_module.shown_progress(console, BENCH_STAGES, quiet=args.quiet, cold=cold) as progress:
        result = bench.run_bench(spec, progress)
        job = bench_job.run_job(args.subs, args.size, spec.threads, progress) if args.subs else None
    text = summary.json_text(result.as_dict() | {"job": None if job is None else summary.json_ready(job.as_dict())})
    if args.json == STANDARD_OUTPUT:
        print_report(text)
        return
    if args.json is not None:
        summary.write_text(text, args.json)
    if not args.quiet:
        out = console_module.make_console(sys.stdout)
        bench.print_bench(out, result)
        if job is not None:
            bench_job.print_job(out, job)


def run_attach(args: argparse.Namespace, _console: Console) -> None:
    """``attach``: put our functions into a ZeMosaic checkout, and say what was done."""
    from zemosaic_phase3.compat import attach

    done = attach.attach(args.checkout)
    facts = [("attached", str(done.checkout))]
    facts += _continued("put there", [f"{folder}/ (three small files, hidden from git)" for folder in done.folders])
    facts += _continued("replaced", done.replaced)
    facts += _continued("left alone", [f"{name}: {reason}" for name, reason in done.kept.items()])
    facts.append(("takes effect", "at the next start of ZeMosaic; none of its files was changed"))
    if done.missing:
        facts.append(("attention", f"the Python that runs ZeMosaic needs {', '.join(done.missing)} too"))
    elif done.trouble:
        facts.append(("attention", f"as it is, ZeMosaic's own code would run: {done.trouble}"))
    facts.append(("to undo", f"{PROGRAM} detach {done.checkout}"))
    if not args.quiet:
        summary.print_facts(console_module.make_console(sys.stdout), facts)


def run_detach(args: argparse.Namespace, _console: Console) -> None:
    """``detach``: take out what ``attach`` put there."""
    from zemosaic_phase3.compat import attach

    done = attach.detach(args.checkout)
    if not args.quiet:
        facts = [("detached", str(done.checkout)), *_continued("removed", [f"{folder}/" for folder in done.folders])]
        summary.print_facts(console_module.make_console(sys.stdout), facts)


def _continued(label: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Label the first of several lines."""
    return [(label if k == 0 else "", line) for k, line in enumerate(lines)]
