"""The commands of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zemosaic_phase3.app import console as console_module
from zemosaic_phase3.app import doctor, summary
from zemosaic_phase3.app.groups import run_groups, say_if_few
from zemosaic_phase3.app.options import NO_PREVIEW, calibration_of
from zemosaic_phase3.app.signals import PROGRAM
from zemosaic_phase3.errors import OutputError, SpecError
from zemosaic_phase3.io.inputs import real_paths
from zemosaic_phase3.pipeline.frame_count import LeastFrames
from zemosaic_phase3.pipeline.input_list import Inputs
from zemosaic_phase3.pipeline.outputs import check_output
from zemosaic_phase3.progress import timed
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import RegisterSpec, SelectSpec, StackSpec

if TYPE_CHECKING:
    from rich.console import Console

STANDARD_OUTPUT: Final = Path("-")
STACK_STAGES: Final = ("measure", "register", "stack")
BENCH_STAGES: Final = ("make", "bench")


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
    if len(set(real_paths(files))) < len(files):
        raise SpecError(f"output, preview and report must be different files, not {', '.join(map(str, files))}")
    for path in files:
        check_output(path, overwrite=args.overwrite)
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is no regular file; choose another name")
    return outputs


def specs_of(args: argparse.Namespace) -> tuple[StackSpec, RegisterSpec, SelectSpec]:
    """Return what the options ask for; raises SpecError for a value out of range."""
    if args.require_gpu and args.device == "cpu":
        raise SpecError("--require-gpu and --device cpu contradict each other")
    if args.no_resume and (args.fresh or args.cache is not None):
        raise SpecError("--no-resume keeps no journal, so that --fresh and --cache have no meaning with it")
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
        spare_stars=args.spare_stars,
    )
    if args.winsor_limits is not None and not stack.is_legacy_winsor:
        raise SpecError("--winsor-limits needs --reject winsorized_sigma_clip --wsc-impl legacy_quantile")
    select = SelectSpec(max_fwhm=args.max_fwhm, min_stars=args.min_stars, drop_worst=args.drop_worst)
    return stack, RegisterSpec(mode=args.register, transform=args.transform), select


def run_stack(args: argparse.Namespace, console: Console) -> int:
    """``stack``: register and stack frames into one FITS file, a preview and a report; returns the exit status."""
    if args.group_by is None:
        return _stack_once(args, args.inputs, console)
    return run_groups(args, console, _stack_once)


def _stack_once(args: argparse.Namespace, inputs: Sequence[str] | Inputs, console: Console) -> int:
    """Stack inputs into the files that the options name."""
    from zemosaic_phase3.engine.warmup import kernels_compiled_beside
    from zemosaic_phase3.pipeline.stack_files import stack_files

    stack, register, select = specs_of(args)
    calibration = calibration_of(args)
    outputs = _outputs(args)
    console_module.announce_compilation(console, quiet=args.quiet)
    with (
        kernels_compiled_beside(stack),
        console_module.shown_progress(console, STACK_STAGES, quiet=args.quiet) as progress,
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
            resume=not args.no_resume,
            fresh=args.fresh,
            cache=args.cache,
            command=args.command_line,
            progress=progress,
        )
    if outputs.preview is not None:
        with timed(tile.report, "preview"):
            summary.write_preview(tile, outputs.preview)
    wants_stdout = outputs.report == STANDARD_OUTPUT
    if outputs.report is not None:
        document = summary.report_document(tile, outputs.as_dict())
        text = summary.json_text(document)
        if wants_stdout:
            print_report(text, f"the stack is written to {outputs.image}")
        else:
            summary.write_text(text, outputs.report)
    if not args.quiet:
        summary.print_summary(
            console if wants_stdout else console_module.make_console(sys.stdout), tile, outputs.as_dict()
        )
    return say_if_few(tile, console)


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


def run_bench(args: argparse.Namespace, console: Console) -> None:
    """``bench``: time every method, say what limits this machine."""
    from zemosaic_phase3.app import bench

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
    console_module.announce_compilation(console, quiet=args.quiet)
    with console_module.shown_progress(console, BENCH_STAGES, quiet=args.quiet) as progress:
        result = bench.run_bench(spec, progress)
    text = summary.json_text(result.as_dict())
    if args.json == STANDARD_OUTPUT:
        print_report(text)
        return
    if args.json is not None:
        summary.write_text(text, args.json)
    if not args.quiet:
        bench.print_bench(console_module.make_console(sys.stdout), result)


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
