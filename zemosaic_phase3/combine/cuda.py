"""How one pixel becomes a result on the GPU: the CUDA text that is compiled, and how it is launched.

The text is ``combine/combine.cu`` with the file of the rejection that is asked for, ``rejection/NAME.cu``, before it,
compiled with :data:`COMPILE_OPTIONS` for one rejection and one combination at a time. It does the same float operations
as the Numba text in the same order: the results have the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zemosaic_phase3.methods import COMBINATIONS, KERNELS, Rejection
from zemosaic_phase3.runtime.cuda_text import constants, joined

LANES: Final = 32  # threads of a block, one warp: no thread waits for another
KERNEL: Final = "combine_block"
SPREAD: Final = "spread_block"
SPREAD_THREADS: Final = 128  # of a block
COMPILE_OPTIONS: Final = ("--std=c++17", "--fmad=false")
SHARED_BLOCKS: Final = 3  # columns must fit so often into a multiprocessor's shared memory, or lie in global memory
SCRATCH_BLOCKS: Final = 16  # on a multiprocessor, where they need no shared memory
SCRATCH_BYTES: Final = 4 << 30  # global memory taken for them at most, if not told otherwise
RUN_ROWS: Final = 256  # sorted in shared memory where a column does not fit
LEVELS: Final = 6  # of the tournament that merges such runs
AHEAD: Final = 4  # rows of each run read before their turn: so long does global memory take
MERGED_FRAMES: Final = RUN_ROWS << LEVELS  # so many runs the tournament takes
SHARED, MERGED, SCRATCH = range(3)  # where columns are sorted, see combine/sort.cu
NOTHING, SQUARES, RANKS = range(3)  # what is added up before a pixel is judged, see rejection/prefix_sums.cu


@dataclass(frozen=True)
class LaunchPlan:
    """How the kernel is launched. ``str`` of it is one line."""

    threads: int  # of a block
    blocks: int  # at most; they share the elements among themselves
    shared_bytes: int  # dynamic shared memory of a block
    scratch_bytes: int  # global memory for the whole launch

    @property
    def in_shared(self) -> bool:
        """True when the columns lie in shared memory; :func:`source` must be told."""
        return self.scratch_bytes == 0

    def __str__(self) -> str:  # noqa: D105
        where = "" if self.in_shared else f", {self.scratch_bytes / 2**20:.0f} MiB scratch"
        return f"{self.blocks} blocks of {self.threads} threads, {self.shared_bytes} B shared{where}"


def launch_plan(
    n_frames: int, n_elements: int, *, shared_limit: int, multiprocessors: int, scratch_limit: int = SCRATCH_BYTES
) -> LaunchPlan:
    """Return how to launch the kernel.

    Parameters
    ----------
    n_frames, n_elements : int
        Frames, and pixels (or pixel-channels) of a launch.
    shared_limit : int, bytes
        Shared memory that a block may ask for (``sharedMemPerBlockOptin``).
    multiprocessors : int
        Of the device.
    scratch_limit : int, bytes
        Global memory it may ask for where shared memory is too small; one block's column is taken in any case.

    Raises
    ------
    ValueError
        No frames or no elements.
    """
    if n_frames < 1 or n_elements < 1:
        raise ValueError(f"nothing to launch: {n_frames} frames of {n_elements} elements; both must be at least 1")
    near = n_frames * (LANES + 1) * 4
    tiles = -(-n_elements // LANES)
    if near * SHARED_BLOCKS <= shared_limit:
        return LaunchPlan(LANES, tiles, near, 0)
    merged = n_frames <= MERGED_FRAMES
    rows = max(RUN_ROWS, (3 + AHEAD) * -(-n_frames // RUN_ROWS))  # of a run, or of the tournament of all
    shared = rows * LANES * 4 if merged else 0
    scratch = n_frames * LANES * 4 * (2 if merged else 1)
    resident = max(1, shared_limit // (shared + 1024)) if merged else SCRATCH_BLOCKS  # the system takes 1 KiB a block
    blocks = max(1, min(tiles, multiprocessors * resident, scratch_limit // scratch))
    return LaunchPlan(LANES, blocks, shared, blocks * scratch)


def spread_source(combine: str) -> str:
    """Return the text of the kernel :data:`SPREAD`; its arguments are at the top of ``combine/spread.cu``."""
    values = {"BY_MEAN": COMBINATIONS[combine].is_mean, "THREADS": SPREAD_THREADS}
    return constants(values) + joined("combine/spread.cu")


def _sums(rejection: Rejection) -> int:
    if "squares" in rejection.needs:
        return SQUARES
    return RANKS if "ranks" in rejection.needs else NOTHING


def source(
    method: str, combine: str, *, rewinsor: bool = False, spares: bool = False, in_shared: bool, n_frames: int
) -> str:
    """Return the text of the kernel for one way to reject and combine.

    The kernel is :data:`KERNEL`; it takes the arguments of :func:`combine.block.combine_block` as pointers; see the
    end of ``combine/combine.cu``.

    Parameters
    ----------
    method, combine : str
        From :class:`combine.kernel_arguments.KernelArguments`.
    rewinsor : bool
        Replace rejected samples by their clipped values.
    spares : bool
        Keep the samples within each pixel's tolerance.
    in_shared : bool
        From :func:`launch_plan`.
    n_frames : int
        How many are combined: few or very many are sorted by another text.
    """
    rejection, combination, rejects = KERNELS[method], COMBINATIONS[combine], method != "none"
    values = {
        "LANES": LANES,
        "ROW": LANES + 1 if in_shared else LANES,
        "RUN": next((run for run in (8, 16) if n_frames <= run), 32),
        "REJECTS": rejects,
        "SPARES": spares,
        "FEWEST": rejection.fewest,
        "NOTHING": NOTHING,
        "SQUARES": SQUARES,
        "RANKS": RANKS,
        "SUMS": _sums(rejection),
        "BY_MEAN": combination.is_mean,
        "HALVES": combination.halves or 0,
        "REWINSOR": rewinsor,
        "SHARED": SHARED,
        "MERGED": MERGED,
        "SCRATCH": SCRATCH,
        "PLACE": SHARED if in_shared else (MERGED if n_frames <= MERGED_FRAMES else SCRATCH),
        "RUN_ROWS": RUN_ROWS,
        "LEVELS": LEVELS,
        "AHEAD": AHEAD,
    }
    files = [f"rejection/{rejection.kernel}.cu"] if rejects else []
    judge = f"#define JUDGE judge_{rejection.kernel}\n" if rejects else ""
    return constants(values) + judge + joined(*files, "combine/combine.cu")
