"""The demonstration: simulated frames, stacked with the default options and compared with their truth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.app import console as console_module
from zemosaic_phase3.app import summary
from zemosaic_phase3.app.printable import printable
from zemosaic_phase3.errors import NoFramesError, OutputError
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.report.preview import before_after_png, write_preview
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth
from zemosaic_phase3.simulate.truth import Figures, compare_with_truth

if TYPE_CHECKING:
    from rich.console import Console

    from zemosaic_phase3.pipeline.tile import Tile


# Half a Seestar's sides. The headers' pointing is a pixel off, as a plate solution is: the stars have to find the rest.
SESSION: Final = SimulationSpec(n_frames=20, height=960, width=540, seed=1, wcs_error_px=1.0)
STAGES: Final = ("simulate", "measure", "register", "stack")
PICTURE_PX: Final = 800  # side of the picture, px
MARK: Final = "README.txt"
MARK_TEXT: Final = "Made by `zemosaic-phase3 demo`. The next demo in this folder replaces everything in it.\n"
FILES: Final = frozenset({MARK, "subs", "master.fits", "master.png", "before_after.png"})


def run_demo(folder: Path, console: Console, *, quiet: bool = False) -> None:
    """Simulate, stack, compare, and print the figures.

    Parameters
    ----------
    folder : Path
        New, or that of an earlier demo; gets ``subs/``, ``master.fits``, ``master.png`` and ``before_after.png``.
    console : Console
        For progress, of the standard error; the figures go to the standard output.
    quiet : bool
        Print nothing.

    Raises
    ------
    OutputError
        The folder holds files that no demo made, or cannot be written.
    """
    claim_folder(folder)
    subs, master, picture = folder / "subs", folder / "master.fits", folder / "before_after.png"
    cold = console_module.announce_compilation(console, quiet=quiet)
    with console_module.shown_progress(console, STAGES, quiet=quiet, cold=cold) as progress:
        truth = simulate(SESSION, subs, overwrite=True, progress=progress)
        tile = stack_files([subs], master, overwrite=True, resume=False, progress=progress)
    write_preview(tile, master.with_suffix(".png"))
    write_before_after(tile, truth, picture)
    figures = compare_with_truth(
        tile.image,
        truth,
        transforms={row.name: row.registration.transform for row in tile.rows if row.used and row.registration},
        coverage=tile.maps.get("COVERAGE"),
        reference_name=tile.report.reference,
    )
    if quiet:
        return
    out = console_module.make_console(sys.stdout)
    size = f"{SESSION.n_frames} simulated frames of {SESSION.height} x {SESSION.width} pixels, {SESSION.bayer}"
    out.print(printable(f"{size}, stacked as by: zemosaic-phase3 stack {subs} -o {master}"), soft_wrap=True)
    summary.print_summary(out, tile, {"output": master, "preview": master.with_suffix(".png"), "picture": picture})
    print_figures(out, figures, brightest_trail_adu=float(truth.trail_peak.max()))


def claim_folder(folder: Path) -> None:
    """Make the folder, or make sure that an earlier demo made it and all that lies in it.

    Raises
    ------
    OutputError
        It holds something else, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        subs = folder / "subs"
        frames = [path.name for path in subs.iterdir()] if subs.is_dir() else []
        strange = sorted(present - FILES if MARK in present else present)
        strange += sorted(name for name in frames if not name.startswith(("sub_", "truth.", ".")))
        if not strange:
            (folder / MARK).write_text(MARK_TEXT, encoding="utf-8")
    except OSError as exc:
        raise OutputError(f"cannot use {folder} for the demo: {exc}; choose a folder you may write") from exc
    if strange:
        raise OutputError(f"{folder} holds files that no demo made ({strange[0]}); choose a new folder")


def write_before_after(tile: Tile, truth: SimulationTruth, path: Path) -> None:
    """Show the frame with the brightest satellite trail, brought onto the master's grid, beside the master."""
    from zemosaic_phase3.engine import cpu
    from zemosaic_phase3.engine.job import make_job
    from zemosaic_phase3.engine.resources import Resources
    from zemosaic_phase3.io.frame import Frame
    from zemosaic_phase3.io.open_frame import open_source
    from zemosaic_phase3.spec import StackSpec

    by_name = {Path(row.name).name: row for row in tile.rows if row.used}
    crossed = [truth.names[truth.trail_frame[k]] for k in truth.trail_peak.argsort()[::-1]]
    row = next((by_name[name] for name in crossed if name in by_name), next(iter(by_name.values())))
    if row.registration is None:
        raise NoFramesError(f"{row.name} was stacked without being registered")
    frame = Frame(open_source(row.name), row.registration.transform, distortion=row.registration.distortion)
    as_it_is = StackSpec(normalize="none", weight="none", reject="none")
    before = cpu.stack(make_job([frame], as_it_is), Resources())
    before_after_png(before.image, tile.image, path, size=PICTURE_PX)


def print_figures(console: Console, figures: Figures, *, brightest_trail_adu: float) -> None:
    """Print how a stack of simulated frames compares with their truth.

    Parameters
    ----------
    console : Console
    figures : dict
        From :func:`simulate.truth.compare_with_truth`.
    brightest_trail_adu : float
        Brightness on the axis of the brightest satellite trail, in its one frame.
    """

    def each(key: str, pattern: str, scale: float = 1.0) -> str:
        return ", ".join(pattern.format(scale * value) for value in np.atleast_1d(figures[key])) or "-"

    sky = f"{each('sky_noise_adu', '{:.2f}')} ADU in blocks of 8 x 8"
    photometry = f"{each('photometric_error', '{:+.2f}', 100.0)} %"
    trail = f"{figures['trail_residual_adu']:+.2f} ADU of {brightest_trail_adu:.0f}"
    rows = [
        ["registration residual, rms", f"{figures['registration_rms_px']:.3f} px", "0"],
        ["registration residual, worst frame", f"{figures['registration_worst_px']:.3f} px", "0"],
        ["sky noise over the ideal (R, G, B)", each("sky_noise_over_ideal", "{:.3f}"), "1"],
        ["  measured", sky, each("sky_noise_ideal_adu", "{:.2f}")],
        [f"photometric error of {figures['photometric_stars']} stars", photometry, "0"],
        ["  between channels", each("channel_balance_error", "{:.2f} %", 100.0), "0"],
        ["  scatter from star to star", each("photometric_scatter", "{:.2f} %", 100.0), "0"],
        ["star width (FWHM) over the truth", each("fwhm_over_truth", "{:.3f}"), "1"],
        [f"trail residual, worst of {figures['trails']}", trail, "0"],
        ["  in units of a pixel's noise", each("trail_residual_pixel_sigma", "{:.2f}"), "0"],
    ]
    summary.print_columns(console, ["against the truth", "measured", "perfect"], rows)
