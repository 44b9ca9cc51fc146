"""``plan``, ``tiles`` and ``mosaic``: many tiles, here or on a cluster, and the image they make together."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3.app import console as console_module
from zemosaic_phase3.app import summary
from zemosaic_phase3.app.options import (
    _add_calibration,
    _add_messages,
    _add_registration,
    _add_stacking,
    _as_argument,
    _memory,
    _path_ending,
    _positive,
    calibration_of,
)
from zemosaic_phase3.app.printable import printable
from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.io.atomic_write import TILE_SUFFIXES
from zemosaic_phase3.methods import DeviceName, canonical
from zemosaic_phase3.runtime.limits import memory_text, usable_cpus
from zemosaic_phase3.spec import RegisterSpec, SelectSpec, StackSpec

if TYPE_CHECKING:
    from rich.console import Console

    from zemosaic_phase3.cluster.order import TileOptions
    from zemosaic_phase3.cluster.pool import PoolPlan
    from zemosaic_phase3.cluster.run import TilesResult
    from zemosaic_phase3.cluster.tile_plan import TilePlan

FAILED: Final = 1
TOO_FEW: Final = 3
MOST_ROWS: Final = 40  # of a table; --json has all
MOST_NOTES: Final = 12
STANDARD_OUTPUT: Final = Path("-")


# --------------------------------------------------------------------------- plan


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``plan``."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="files, folders, quoted patterns, or addresses such as s3://BUCKET/NIGHT",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="PLAN",
        type=_path_ending(".toml"),
        help="plan to write, ending in .toml",
    )
    group = parser.add_argument_group("how frames become tiles")
    group.add_argument(
        "--recursive", action="store_true", help="take the frames in the folders below too (default: no)"
    )
    group.add_argument(
        "--by", type=_keys, default=("filter", "exposure"), metavar="LIST",
        help="what the frames of a tile agree in, of: filter, exposure, gain, object, instrument, binning, night "
        "(default: filter,exposure)",
    )  # fmt: skip
    group.add_argument(
        "--spread", type=float, default=0.5, metavar="F",
        help="greatest distance of two frames in a tile, as a part of the shorter side of a frame (default: 0.5)",
    )  # fmt: skip
    group.add_argument(
        "--overlap", type=float, default=0.0, metavar="F",
        help="frames this much beyond a tile belong to it too, as a part of the shorter side (default: 0)",
    )  # fmt: skip
    group.add_argument("--max-frames", type=_positive, metavar="N", help="cut larger tiles into parts (default: no)")
    group.add_argument(
        "--min-frames", type=_positive, default=3, metavar="N", help="plan no tile of fewer frames (default: 3)"
    )
    group.add_argument("--bayer", default="auto", metavar="PATTERN", help="colour mosaic, as for stack (default: auto)")
    _add_report(parser.add_argument_group("results"), "PLAN")
    _add_messages(parser)


def _keys(text: str) -> tuple[str, ...]:
    from zemosaic_phase3.cluster.grouping import plan_keys

    keys: tuple[str, ...] = _as_argument(lambda: plan_keys(text))
    return keys


def _add_report(group: Any, what: str) -> None:
    group.add_argument(
        "--json", type=_path_ending(".json", instead="-"), metavar="FILE",
        help="write what was done as JSON; - is the standard output (default: no)",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help=f"replace {what} if it exists (default: no)")


def run_plan(args: argparse.Namespace, console: Console) -> None:
    """``plan``: group frames into tiles, say what would be done, write the plan."""
    from zemosaic_phase3.cluster.grouping import GroupingSpec, plan_facts, plan_tiles
    from zemosaic_phase3.cluster.tile_plan import write_plan
    from zemosaic_phase3.pipeline.input_list import list_inputs
    from zemosaic_phase3.pipeline.outputs import check_output

    check_output(args.output, overwrite=args.overwrite)
    spec = GroupingSpec(args.by, args.spread, args.overlap, args.max_frames, args.min_frames)
    listed = list_inputs(args.inputs, None, recursive=args.recursive)
    with console_module.shown_progress(console, ("plan",), quiet=args.quiet) as progress:
        plan = plan_tiles(listed, spec, bayer=args.bayer, workers=usable_cpus(), progress=progress)
    write_plan(plan, args.output, overwrite=args.overwrite)
    _report({"plan": str(args.output), **plan_facts(plan)}, args)
    if not args.quiet:
        _print_plan(_results(console, args), plan, args.output)


def _results(console: Console, args: argparse.Namespace) -> Console:
    """Return where results are printed: not among the JSON."""
    return console if args.json == STANDARD_OUTPUT else console_module.make_console(sys.stdout)


def _report(document: dict[str, Any], args: argparse.Namespace) -> None:
    from zemosaic_phase3.app.commands import print_report

    if args.json is None:
        return
    text = summary.json_text(summary.json_ready(document))
    if args.json == STANDARD_OUTPUT:
        print_report(text)
    else:
        summary.write_text(text, args.json)


def _print_plan(console: Console, plan: TilePlan, path: Path) -> None:
    rows = [
        [tile.name, str(len(tile.frames)), str(tile.shared or ""), f"{tile.spread:.2f}", f"{tile.width}x{tile.height}"]
        for tile in plan.tiles[:MOST_ROWS]
    ]
    summary.print_columns(console, ["tile", "frames", "shared", "spread, deg", "pixels"], rows)
    more = len(plan.tiles) - MOST_ROWS
    facts = [("", f"... and {more} more tiles")] if more > 0 else []
    samples = sum(tile.pixels for tile in plan.tiles)
    facts.append(
        ("tiles", f"{len(plan.tiles)} of {plan.n_frames} different frames, {samples / 1e6:,.0f} million pixels")
    )
    notes = [
        *plan.notes[:MOST_NOTES],
        *([f"... and {len(plan.notes) - MOST_NOTES} more"] if len(plan.notes) > MOST_NOTES else []),
    ]
    facts += [("note" if k == 0 else "", note) for k, note in enumerate(notes)]
    facts.append(("plan", f"{path}; make the tiles with: zemosaic-phase3 tiles {path} -o DIR"))
    summary.print_facts(console, facts)


# --------------------------------------------------------------------------- tiles


def add_tiles(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tiles``."""
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan of tiles, from the command plan")
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", type=Path,
        help="folder for the tiles and the manifest; all workers must see it; what is finished there is kept",
    )  # fmt: skip
    group = parser.add_argument_group("where")
    group.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="use a Dask cluster that runs, e.g. tcp://HOST:8786 (default: this machine)",
    )
    group.add_argument("--gpus", metavar="all|N", help="one worker for each GPU of this machine (default: no)")
    group.add_argument(
        "--processes", type=_positive, metavar="N", help="workers on this machine (default: by cores, tiles and memory)"
    )
    group.add_argument(
        "--threads", type=_positive, metavar="N", help="threads of one tile (default: its share of the cores)"
    )
    group.add_argument(
        "--memory", type=_memory, metavar="SIZE",
        help="memory of all workers of this machine together; of one worker with --scheduler (default: as for stack; "
        "what the cluster allows a worker)",
    )  # fmt: skip
    group.add_argument(
        "--bands", type=int, default=0, metavar="N",
        help="cut each tile into N bands of rows for several workers; 0: only tiles that would keep one worker busy "
        "after the others (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--device", type=lambda text: _as_argument(lambda: canonical("device", text, DeviceName)), default="auto",
        metavar="NAME", help="auto, cpu or gpu, as for stack (default: auto)",
    )  # fmt: skip
    group.add_argument("--require-gpu", action="store_true", help="fail rather than use the CPU (default: no)")
    group.add_argument(
        "--wait", type=float, default=600.0, metavar="SECONDS", help="for a scheduler that is gone (default: 600)"
    )
    group = parser.add_argument_group("which tiles")
    group.add_argument("--only", action="append", default=[], metavar="NAME", help="make this tile; may be repeated")
    group.add_argument("--fresh", action="store_true", help="make tiles again that are finished (default: no)")
    group.add_argument(
        "--min-frames", metavar="N|P%", help="a tile with fewer frames used makes the exit status 3 (default: 50%%)"
    )
    _add_registration(parser.add_argument_group("frames and registration"), with_reference=False)
    _add_calibration(parser.add_argument_group("calibration"))
    _add_stacking(parser.add_argument_group("rejection and combination"))
    group = parser.add_argument_group("results")
    group.add_argument(
        "--no-maps", dest="maps", action="store_false",
        help="write no COVERAGE, which a mosaic wants, WEIGHT, REJ_LOW, REJ_HIGH and FRAMES (default: do)",
    )  # fmt: skip
    group.add_argument(
        "--self-check", action=argparse.BooleanOptionalAction, default=True, help="as for stack (default: yes)"
    )
    group.add_argument("--no-journal", action="store_true", help="keep no measurements for tiles that share frames")
    group.add_argument(
        "--json", type=_path_ending(".json", instead="-"), metavar="FILE",
        help="write the manifest there too; - is the standard output (default: no)",
    )  # fmt: skip
    _add_messages(parser)


def run_tiles(args: argparse.Namespace, console: Console) -> int:
    """``tiles``: make all tiles of a plan; returns the exit status."""
    from zemosaic_phase3.cluster.manifest import manifest_document, write_manifest
    from zemosaic_phase3.cluster.order import prepare_folder
    from zemosaic_phase3.cluster.pool import connect, local_pool, plan_pool, require_dask
    from zemosaic_phase3.cluster.run import Patience, TilesRun, chosen_tiles, hosts_of, orders_of
    from zemosaic_phase3.cluster.run_lock import only_run
    from zemosaic_phase3.cluster.tile_plan import read_plan

    plan = chosen_tiles(read_plan(args.plan), args.only)
    cards = _cards(args)
    require_dask()
    folder = prepare_folder(args.output)
    pool = None
    with ExitStack() as stack:
        stack.enter_context(only_run(folder))
        if args.scheduler is None:
            pool = plan_pool(_parts(plan, args), workers=args.processes, memory=args.memory, cards=cards)
            options = _options(args, memory=pool.memory, threads=args.threads or pool.threads)
            client = stack.enter_context(local_pool(pool))
            n_workers, per_host = pool.workers, pool.workers
        else:
            options = _options(args, memory=args.memory, threads=args.threads)
            client = stack.enter_context(connect(args.scheduler))
            hosts = [count for _, count in hosts_of(client)]
            n_workers, per_host = sum(hosts), max(hosts, default=1)
        orders = orders_of(plan, folder, options, n_workers=n_workers, per_host=per_host)
        if not args.quiet:
            _tell_start(console, plan, pool, str(getattr(client, "dashboard_link", "") or ""), n_workers, args)
        progress = stack.enter_context(console_module.shown_progress(console, ("tiles",), quiet=args.quiet))
        run = TilesRun(
            client, orders, address=args.scheduler, patience=Patience(scheduler=args.wait), progress=progress,
            finished=None if args.quiet else lambda record: _tell_failure(console, record),
        )  # fmt: skip
        result = run.run()
    document = manifest_document(result, plan.tiles, plan=str(args.plan), command=args.command_line)
    path = write_manifest(summary.json_ready(document), folder)
    _report(document, args)
    if not args.quiet:
        _print_tiles(_results(console, args), document, result, path)
    if result.failed:
        return FAILED
    return TOO_FEW if any(record.n_used < record.n_needed for record in result.records) else 0


def _parts(plan: TilePlan, args: argparse.Namespace) -> int:
    return len(plan.tiles) * max(1, args.bands)


def _cards(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the GPUs that are asked for; raises SpecError for options that contradict each other."""
    from zemosaic_phase3.cluster.pool import cards_of

    if args.bands < 0:
        raise SpecError(f"--bands {args.bands} is less than 0")
    if args.scheduler is not None and (args.gpus or args.processes):
        raise SpecError(
            "--scheduler uses the workers of that cluster, so that --gpus and --processes have no meaning with it"
        )
    if args.gpus is None:
        return ()
    if args.processes or args.device == "cpu":
        raise SpecError("--gpus means one worker for each GPU; leave --processes and --device cpu out")
    return cards_of(args.gpus)


def _options(args: argparse.Namespace, *, memory: int | None, threads: int | None) -> TileOptions:
    from zemosaic_phase3.app.commands import stack_spec_of
    from zemosaic_phase3.cluster.order import TileOptions

    stack: StackSpec = stack_spec_of(args)
    return TileOptions(
        stack, RegisterSpec(mode=args.register, transform=args.transform),
        SelectSpec(max_fwhm=args.max_fwhm, min_stars=args.min_stars, drop_worst=args.drop_worst), calibration_of(args),
        args.bayer, args.maps, args.device, args.require_gpu, args.self_check, args.min_frames, not args.no_journal,
        args.fresh, memory, threads, args.bands,
    )  # fmt: skip


def _tell_start(
    console: Console, plan: TilePlan, pool: PoolPlan | None, dashboard: str, n_workers: int, args: argparse.Namespace
) -> None:
    if pool is None:
        where = f"{n_workers} workers of {args.scheduler}"
    else:
        what = (
            f"GPU processes ({', '.join(pool.cards)})" if pool.cards else "processes" if pool.workers > 1 else "process"
        )
        threads = f"{pool.threads} threads" if pool.threads > 1 else "1 thread"
        where = f"{pool.workers} {what} with {threads} and {memory_text(pool.memory)} each"
    console.print(f"{len(plan.tiles)} tiles on {where}", soft_wrap=True)
    if dashboard:
        console.print(f"Dask's dashboard: {dashboard}", soft_wrap=True)


def _tell_failure(console: Console, record: Any) -> None:
    if record.state not in ("made", "kept"):
        console.print(printable(f"{record.name}: {record.reason}"), style="red", soft_wrap=True)


def _print_tiles(console: Console, document: dict[str, Any], result: TilesResult, path: Path) -> None:
    rows = [
        [r.name, r.state, f"{r.n_used} of {r.n_frames}", r.device, r.worker, str(r.attempts or ""), f"{r.seconds:.1f}"]
        for r in [*result.failed, *(r for r in result.records if r not in result.failed)][:MOST_ROWS]
    ]
    summary.print_columns(console, ["tile", "", "frames", "device", "worker", "begun", "s"], rows)
    facts = [("tiles", f"{document['made']} made, {document['kept']} there before, {document['failed']} failed")]
    again = [r for r in result.records if r.attempts > 1]
    if again:
        facts.append(("again", f"{len(again)} tiles were begun more than once: {', '.join(r.name for r in again[:5])}"))
    if result.orders_lost:
        facts.append(("scheduler", f"was lost with {result.orders_lost} tiles, which were ordered anew"))
    facts += [("failed" if k == 0 else "", f"{r.name}: {r.reason}") for k, r in enumerate(result.failed[:MOST_NOTES])]
    facts += [("time", f"{result.seconds:.1f} s"), ("manifest", str(path))]
    summary.print_facts(console, facts)


# --------------------------------------------------------------------------- mosaic


def add_mosaic(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``mosaic``."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of tiles")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", type=_path_ending(*TILE_SUFFIXES),
        help="FITS file to write, ending in .fits, .fit or .fts",
    )  # fmt: skip
    group = parser.add_argument_group("how")
    group.add_argument("--filter", metavar="NAME", help="tiles of this filter alone (default: there must be one only)")
    group.add_argument(
        "--levels", choices=("gain", "offset", "none"), default="gain",
        help="match tiles where they overlap: gain and offset, offset alone, or not at all (default: gain)",
    )  # fmt: skip
    group.add_argument(
        "--scale", type=float, metavar="ARCSEC", help="of a pixel of the mosaic (default: that of the sharpest tile)"
    )
    _add_report(parser.add_argument_group("results"), "OUT")
    _add_messages(parser)


def run_mosaic(args: argparse.Namespace, console: Console) -> None:
    """``mosaic``: put tiles together."""
    from zemosaic_phase3.cluster.mosaic import MosaicSpec, make_mosaic
    from zemosaic_phase3.pipeline.outputs import check_output

    check_output(args.output, overwrite=args.overwrite)
    if not args.folder.is_dir():
        raise NoFramesError(
            f"{args.folder}: is no folder; make tiles with: zemosaic-phase3 tiles PLAN -o {args.folder}"
        )
    spec = MosaicSpec(args.levels, args.filter, args.scale)
    with console_module.shown_progress(console, ("mosaic",), quiet=args.quiet) as progress:
        found = make_mosaic(args.folder, args.output, spec, overwrite=args.overwrite, progress=progress)
    _report(found.as_dict(), args)
    if not args.quiet:
        out = _results(console, args)
        rows = [
            [t.name, f"{t.gain[0]:.4f}", f"{t.offset[0]:+.2f}", f"{t.noise[0]:.3g}"] for t in found.tiles[:MOST_ROWS]
        ]
        summary.print_columns(out, ["tile", "gain", "offset, ADU", "noise, ADU"], rows)
        summary.print_facts(out, found.facts())
