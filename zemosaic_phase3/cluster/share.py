"""What one tile may take of the machine that its worker is on."""

from __future__ import annotations

from typing import Any, Final

from zemosaic_phase3.cluster.order import TileOptions
from zemosaic_phase3.runtime import limits

MEMORY_SHARE: Final = 0.7  # of what a cluster gives a worker: less than what makes Dask pause or end it


def dask_worker() -> Any:
    """Return the worker of Dask whose thread this is; None: somebody else called."""
    try:
        from distributed import get_worker

        return get_worker()
    except (ImportError, ValueError):
        return None


def share_of_machine(options: TileOptions, per_host: int) -> tuple[int | None, int]:
    """Return bytes and threads for one tile, or a band of one, on this worker.

    Parameters
    ----------
    options : TileOptions
        What was asked for.
    per_host : int
        Tiles that are made at once on one machine, at most.
    """
    memory, slots = options.memory, per_host
    worker = dask_worker()
    if worker is not None:
        limits.keep_freed_memory()  # against what Dask sets; see there
        own = max(1, int(worker.state.nthreads))
        slots = max(slots, own)
        given = getattr(worker.memory_manager, "memory_limit", None)
        if memory is None and given:
            memory = int(given * MEMORY_SHARE / own)
    if memory is None and slots > 1:
        memory = limits.default_limit() // slots
    return memory, options.threads or max(1, limits.usable_cpus() // slots)
