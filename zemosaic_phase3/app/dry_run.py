"""``stack --dry-run``: what would be stacked, in how much memory and time, and nothing is written."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zemosaic_phase3.app import console as console_module
from zemosaic_phase3.app import summary
from zemosaic_phase3.errors import ZeMosaicError
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.pipeline.outputs import Wanted
from zemosaic_phase3.pipeline.survey import Survey
from zemosaic_phase3.pipeline.tile import plan_of_group, tile_shape
from zemosaic_phase3.runtime import limits
from zemosaic_phase3.runtime.limits import memory_text
from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, StackSpec

if TYPE_CHECKING:
    from rich.console import Console

SAMPLE: Final = 6  # frames that are stacked, to see how long that takes
MINUTE: Final = 60.0


def run_dry(
    args: argparse.Namespace,
    found: Survey,
    specs: tuple[StackSpec, RegisterSpec, CalibrationSpec],
    wanted: Wanted,
    console: Console,
) -> int:
    """Print what a run would do; returns 0.

    Raises
    ------
    PlanError
        The stack would not fit into the memory.
    """
    stack, register, calibration = specs
    group, out = found.group, console_module.make_console(sys.stdout)
    kinds = found.kinds()
    rows = [
        [
            kind.object or "-",
            kind.filter or "-",
            _number(kind.exposure, " s"),
            _number(kind.gain),
            str(kind.n),
            kind.first or "-",
        ]
        for kind in kinds
    ]
    summary.print_columns(out, ["object", "filter", "exposure", "gain", "frames", "first"], rows)
    facts = [("frames", f"{len(group.usable)} of {len(group.rows)} would be measured")]
    total = sum(kind.n * kind.exposure for kind in kinds if math.isfinite(kind.exposure))
    if total:
        facts.append(("exposure", f"{total:.0f} s" + (f" ({_duration(total)})" if total >= 2 * MINUTE else "")))
    facts += _continued("left out", summary.dropped_lines(group.dropped()))
    facts += _continued("note", found.notes)
    source = group.source(group.usable[0])
    shape = tile_shape(source, stack)
    facts.append(("image", f"{shape[1]} x {shape[0]} pixels, {'colour' if source.channels == 3 else 'grey'}"))
    drizzle = f", drizzle {stack.drizzle:g} with pixfrac {stack.pixfrac:g}" if stack.drizzle else ""
    method = f"{stack.reject}, {stack.combine}, normalised {stack.normalize}, weighted {stack.weight}{drizzle}"
    facts.append(("method", method))
    facts += _continued("calibration", _calibration(calibration))
    used = limits.process_bytes()
    allowed = (limits.default_limit() if args.memory is None else args.memory) - used
    workers = args.workers or limits.usable_cpus()
    plan = plan_of_group(group, stack, register, workers, max(1, allowed), 1)
    slabs = f"{plan.n_slabs} {'slab' if plan.n_slabs == 1 else 'slabs'} of {plan.rows_per_slab} rows"
    needed = f"{memory_text(plan.needed_bytes + used)} of {memory_text(allowed + used)}"
    facts.append(("memory", f"{needed} on the CPU, at most {slabs}, {plan.workers} threads"))
    sizes = wanted.sizes(shape, len(group.rows))
    free = shutil.disk_usage(wanted.tile.parent).free
    facts.append(("disk", f"{memory_text(sum(sizes.values()))} of {memory_text(free)} that are free"))
    facts.append(("time", _time(args, group, specs, console)))
    facts += _continued("would write", [str(path) for path in sizes])
    summary.print_facts(out, facts)
    return 0


def _time(
    args: argparse.Namespace, group: Group, specs: tuple[StackSpec, RegisterSpec, CalibrationSpec], console: Console
) -> str:
    """Stack a few of the frames into nothing, and say how long all of them would take."""
    from zemosaic_phase3.engine.warmup import kernels_compiled_beside
    from zemosaic_phase3.pipeline.stack_files import stack_files

    stack, register, calibration = specs
    usable = group.usable
    step = max(1, len(usable) // SAMPLE)
    some = [Path(group.rows[i].name) for i in usable[::step][:SAMPLE]]
    console_module.announce_compilation(console, quiet=args.quiet)
    seconds = {}
    try:
        for _ in range(2):  # the first loads kernels, or compiles them
            began = time.perf_counter()
            with kernels_compiled_beside(stack, registers=register.mode != "none"):
                tile = stack_files(
                    some, stack=stack, register=register, bayer=args.bayer, calibration=calibration, device="cpu",
                    memory=args.memory, workers=args.workers, filter=args.filter, self_check=False, resume=False,
                )  # fmt: skip
            seconds = {**tile.report.seconds, "all": time.perf_counter() - began}
    except ZeMosaicError as exc:
        return f"not known: {len(some)} of the frames do not stack ({exc})"
    grows = sum(seconds.get(stage, 0.0) for stage in ("open", "calibrate", "measure", "register", "stack"))
    n = len(usable)
    about = max(0.0, seconds["all"] - grows) + grows * n / len(some)
    return f"about {_duration(about)} on the CPU, from {len(some)} frames stacked in {seconds['all']:.1f} s"


def _calibration(spec: CalibrationSpec) -> list[str]:
    named = [
        f"{label}: {', '.join(map(str, paths))}"
        for label, paths in (
            ("dark", spec.dark),
            ("flat", spec.flat),
            ("bias", spec.bias),
            ("dark-flat", spec.dark_flat),
        )
        if paths
    ]
    return [*named, *([f"library: {spec.library}"] if spec.library else []), f"cosmetic: {spec.cosmetic}"]


def _continued(label: str, lines: list[str]) -> list[tuple[str, str]]:
    return [(label if k == 0 else "", line) for k, line in enumerate(lines)]


def _number(value: float, unit: str = "") -> str:
    return f"{value:g}{unit}" if math.isfinite(value) else "-"


def _duration(seconds: float) -> str:
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 120 * MINUTE else f"{seconds / 3600:.1f} h"
