"""The self-check at the end of a stack: random pixels of the result are made again from the files, and compared.

Bad memory, a miscompiled kernel, a graphics card that computes wrongly: none of them says so, and the tile looks like
any other. So a few pixels are read again, and made by the definitions in plain float64 NumPy (wing ``check``), which
shares nothing with the engines' kernels. Pixels lie in clusters, so that each frame is read once per cluster, and a few
rows of it only; which they are follows from the job alone. The first cluster is always checked, the further ones as
long as the check takes less than a hundredth of the run.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.check.definitions import Pixel
from zemosaic_phase3.check.pixels import Judged, definition_of, judge_pixel
from zemosaic_phase3.check.samples import Samples, samples_at
from zemosaic_phase3.engine.job import Job, StackResult
from zemosaic_phase3.errors import FrameError, SelfCheckError
from zemosaic_phase3.records import DeviceUse, SelfCheck

if TYPE_CHECKING:
    from zemosaic_phase3.pipeline.kept_rows import KeptRows

logger = logging.getLogger("ZeMosaicWorker")

SHARE: Final = 0.01  # of the run, that the check may take after its first cluster
CLUSTERS: Final = 16  # at most
TOGETHER: Final = 4  # pixels of a cluster
BOX: Final = (4, 48)  # rows and columns of a cluster
NAMED: Final = 5  # frames named in a message


@dataclass(frozen=True)
class Found:
    """What the check of a result found: how many pixels agree, how well, and the first that does not."""

    pixels: int
    largest_difference: float
    seconds: float
    wrong: SelfCheckError | None = None

    def record(self, note: str = "") -> SelfCheck:
        """Return what goes into the report."""
        return SelfCheck(self.pixels, self.largest_difference, self.seconds, note)


def check_result(result: StackResult, *, run_seconds: float = 0.0, workers: int = 1) -> Found:
    """Make some pixels of a result again and compare them.

    Parameters
    ----------
    result : StackResult
        Of either engine, equalised or not.
    run_seconds : float
        What the run has taken so far; a hundredth of it is there for the check.
    workers : int
        Threads that read.

    Raises
    ------
    FrameError
        A frame can no longer be read, so that nothing can be said.
    """
    began = time.perf_counter()
    definition, gains = definition_of(result.job), _gains(result)
    pixels, largest, longest = 0, 0.0, 0.0
    for rows, columns in clusters(result):
        start = time.perf_counter()
        if pixels and start - began + longest > SHARE * run_seconds:
            break
        samples = samples_at(result.job, rows, columns, workers)
        for p, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            for c in range(result.job.channels):
                here = replace(definition, tolerance=_tolerance(result.job, row, column, c))
                judged = judge_pixel(here, _pixel(result, row, column, c), samples, p, c, gains[c])
                if not judged.agrees:
                    wrong = _error(result.job, samples, p, (row, column, c), judged)
                    return Found(pixels, largest, time.perf_counter() - began, wrong)
                largest = max(largest, judged.difference)
            pixels += 1
        longest = max(longest, time.perf_counter() - start)
    return Found(pixels, largest, time.perf_counter() - began)


def checked_stack(
    result: StackResult,
    again: Callable[[], StackResult],
    *,
    distrust: Callable[[logging.Logger], None],
    finished: KeptRows | None = None,
    require_gpu: bool = False,
    run_seconds: float = 0.0,
    workers: int = 1,
) -> StackResult:
    """Return a result that agrees with its check: the one given, or the CPU's where a GPU or an earlier run made it.

    Parameters
    ----------
    result : StackResult
        With ``device`` filled in; so it is returned, with ``self_check``.
    again : callable
        Stacks the same on the CPU.
    distrust : callable
        Turns the GPU off for the rest of the run; called with a logger if its result is wrong.
    finished : KeptRows, optional
        Rows of earlier runs and for later ones, which are given up if the result is wrong.
    require_gpu : bool
        A wrong result of the GPU is an error at once.
    run_seconds, workers
        See :func:`check_result`.

    Raises
    ------
    SelfCheckError
        A result of the CPU is wrong, or one of a GPU that is required.
    """
    try:
        found = check_result(result, run_seconds=run_seconds, workers=workers)
        note = ""
        if found.wrong is not None and finished is not None:
            finished.discard()
        restored = finished is not None and finished.n_restored > 0
        if found.wrong is not None and (result.device.used_gpu or restored):
            who = "the GPU's tile" if result.device.used_gpu else "a tile with rows of an earlier run"
            logger.error("%s is wrong: %s", who, found.wrong)
            device = result.device
            if device.used_gpu:
                distrust(logger)
                if require_gpu:
                    raise found.wrong
                device = DeviceUse(False, device.gpu_attempts, "the GPU's result failed the self-check")
            note = f"{who} was wrong, and made again by the CPU: {found.wrong}"
            result = again()
            result.device = device
            found = check_result(result, run_seconds=run_seconds, workers=workers)
        if found.wrong is not None:
            raise found.wrong
        result.self_check = found.record(note)
    except FrameError as exc:
        logger.warning("the self-check could not be made: %s", exc)
        result.self_check = SelfCheck(note=f"it could not be made, because a frame cannot be read again: {exc}")
    return result


def _gains(result: StackResult) -> list[float]:
    done = result.equalization
    return [done.gain_r, done.gain_g, done.gain_b] if result.job.channels == 3 and done.applied else [1.0] * 3


def _tolerance(job: Job, row: int, column: int, c: int) -> float:
    """Return by how much samples of a pixel may differ from their median and are kept in any case, ADU."""
    if job.tolerance is None:
        return 0.0
    return float(job.tolerance[(row, column) if job.tolerance.ndim == 2 else (row, column, c)])


def _pixel(result: StackResult, row: int, column: int, c: int) -> Pixel:
    """Return what a result says of one channel of a pixel."""
    at = (row, column) if result.image.ndim == 2 else (row, column, c)
    maps = (result.image, result.coverage, result.weight, result.rejected_low, result.rejected_high)
    value, coverage, weight, low, high = (array[at].item() for array in maps)
    return Pixel(float(value), int(coverage), float(weight), int(low), int(high))


def clusters(result: StackResult) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and columns of the pixels to check, ``TOGETHER`` at a time, near to each other.

    They follow from the frames' names, the shape and the specification. The first ones lie in the slab that was stacked
    last, whose rows the system still has in memory, around a pixel that lost many samples; the second ones at an edge;
    then others anywhere, every other time where samples were rejected.
    """
    job = result.job
    seed = hashlib.sha256(
        "\0".join([*job.table.names, repr(job.spec), repr(job.shape)]).encode(errors="backslashreplace")
    ).digest()
    rng = np.random.default_rng(list(seed))
    height, width = job.shape[:2]
    slab = result.rows_per_slab or height
    last = (height - 1) // slab * slab
    for k in range(CLUSTERS):
        row, column = int(rng.integers(last if k == 0 else 0, height)), int(rng.integers(width))
        if k % 4 == 1:
            row, column = [(0, column), (height - 1, column), (row, 0), (row, width - 1)][int(rng.integers(4))]
        elif k % 2 == 0:
            rejected = result.rejected_low[row] + result.rejected_high[row]
            rejected = rejected if rejected.ndim == 1 else rejected.sum(axis=1)
            some = np.flatnonzero(rejected == rejected.max())
            column = int(some[rng.integers(some.size)])
        top = min(max(row - int(rng.integers(BOX[0])), 0), max(height - BOX[0], 0))
        left = min(max(column - int(rng.integers(BOX[1])), 0), max(width - BOX[1], 0))
        rows = rng.integers(top, min(top + BOX[0], height), TOGETHER)
        columns = rng.integers(left, min(left + BOX[1], width), TOGETHER)
        rows[0], columns[0] = row, column
        yield rows, columns


def _error(job: Job, samples: Samples, p: int, pixel: tuple[int, int, int], judged: Judged) -> SelfCheckError:
    """Return the error that tells of a pixel."""
    row, column, c = pixel
    names = [Path(name).name for name in job.table.names]
    other = _differing(job, samples, p, pixel)
    value, expected = judged.found.value, judged.expected.value
    colour = "" if job.channels == 1 else f", {('red', 'green', 'blue')[c]}"
    there = np.flatnonzero(np.isfinite(samples.value[:, p, c]))
    which = [names[i] for i in (other if other.size else there)]
    named = ", ".join(which[:NAMED]) + (f" and {len(which) - NAMED} more" if len(which) > NAMED else "")
    told = f"is {value:.9g}, and its frames make {expected:.9g} (allowed: {judged.tolerance:.2g} ADU)"
    if abs(value - expected) <= judged.tolerance or (np.isnan(value) and np.isnan(expected)):
        counts = "samples {1}, weight {2:.7g}, rejected low {3}, high {4}"
        told = f"has {counts.format(*judged.found)}, and its frames make {counts.format(*judged.expected)}"
    where = f"samples differ in {named}" if other.size else f"frames: {named}"
    return SelfCheckError(
        f"self-check: the pixel in column {column}, row {row} (from 0{colour}) {told}; {where}. The computation is at "
        "fault, not the frames: test the memory of this machine, run `zemosaic-phase3 doctor --clear-kernels`, "
        "and stack again",
        pixel, value, expected, tuple(job.table.names[i] for i in (other if other.size else there)),
    )  # fmt: skip


def _differing(job: Job, samples: Samples, p: int, pixel: tuple[int, int, int]) -> np.ndarray:
    """Return the frames whose samples the CPU engine makes otherwise now, largest difference first."""
    from zemosaic_phase3.engine.slab import fill_samples, own_weights

    row, column, c = pixel
    line = np.empty(job.shape[1] * job.channels, np.float32)
    own = np.empty(job.shape[1] * own_weights(job), np.float32)
    differs = np.zeros(len(job.sources))
    for i in range(len(job.sources)):
        try:
            fill_samples(job, i, slice(row, row + 1), line, own)
        except FrameError:
            differs[i] = np.inf
            continue
        made, value = float(line[column * job.channels + c]), samples.value[i, p, c]
        if np.isfinite(made) != np.isfinite(value):
            differs[i] = np.inf
        elif np.isfinite(made) and abs(made - value) > 2.0 * samples.error[i, p, c] + 1e-6 * abs(value):
            differs[i] = abs(made - value)
    order = np.argsort(-differs, kind="stable")
    return order[differs[order] > 0.0]
