"""Where tiles are made: workers of this machine, sized by the plan, or a cluster that runs already.

Dask's ``distributed`` does the rest, and any of its deployers can have started the scheduler: ``dask scheduler`` by
hand, ``dask-jobqueue`` on Slurm, ``dask-kubernetes``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3.errors import DeviceError, PlanError, SpecError, ZeMosaicError
from zemosaic_phase3.extras import install
from zemosaic_phase3.runtime import limits

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("ZeMosaicWorker")

LEAST_BYTES: Final = 600 * 10**6  # of a worker: Python, packages and Dask take 350 MB of it
HARD_LIMIT: Final = 1.4  # times what a tile is told to keep to, at which Dask ends the process: it has lost count
CONNECT_SECONDS: Final = 5.0  # of one attempt
NAP_SECONDS: Final = 1.0


class ClusterError(ZeMosaicError):
    """The cluster cannot be used; says why, and what helps."""


@dataclass(frozen=True)
class PoolPlan:
    """Workers of this machine: how many, with how many threads and bytes for each tile; cards, one a worker."""

    workers: int
    threads: int
    memory: int
    cards: tuple[str, ...] = ()


def plan_pool(
    n_tiles: int, *, workers: int | None = None, memory: int | None = None, cards: tuple[str, ...] = ()
) -> PoolPlan:
    """Size the workers of this machine.

    A tile is made faster by a process of its own on each core than by threads of one: reading headers and matching
    stars hold the interpreter. So there are as many processes as cores, tiles, and memory allow; the cores left over
    are threads of theirs.

    Parameters
    ----------
    n_tiles : int
        No more processes are of use.
    workers : int, optional
        Processes; default: see above.
    memory : int, optional
        Bytes of all together; default: see :func:`runtime.limits.default_limit`.
    cards : tuple of str
        GPUs by number or name: one process each.

    Raises
    ------
    PlanError
        The memory is too little for that many processes.
    """
    total = limits.default_limit() if memory is None else memory
    cores = limits.usable_cpus()
    most = max(1, total // LEAST_BYTES)
    n = len(cards) or (min(cores, max(1, n_tiles), most) if workers is None else workers)
    if n > most:
        raise PlanError(
            f"{n} processes with {limits.memory_text(total)} together have less than "
            f"{limits.memory_text(LEAST_BYTES)} each; allow more (--memory) or fewer processes (--processes)"
        )
    return PoolPlan(n, max(1, cores // n), total // n, cards)


def cards_of(wanted: str) -> tuple[str, ...]:
    """Return the GPUs that ``all`` or a number stands for, as CUDA_VISIBLE_DEVICES names them; CUDA is not touched.

    Raises
    ------
    SpecError
        Not such a number.
    DeviceError
        There are fewer.
    """
    text = wanted.strip().lower()
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise SpecError(f"--gpus {wanted!r} is neither all nor a number of at least 1")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = [part.strip() for part in visible.split(",") if part.strip() and part.strip() != "-1"]
    else:
        found = [str(k) for k in range(_count_cards())]
    if not found or (text != "all" and int(text) > len(found)):
        raise DeviceError(f"--gpus {wanted}: {len(found)} GPUs are visible here; `zemosaic-phase3 doctor` tells more")
    return tuple(found if text == "all" else found[: int(text)])


def _count_cards() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as exc:
        logger.warning("nvidia-smi -L failed: %s", exc)
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def require_dask() -> Any:
    """Return ``distributed``.

    Raises
    ------
    ClusterError
        It is not installed.
    """
    try:
        import distributed
    except ImportError as exc:
        raise ClusterError(f"tiles are made by Dask, which is not there ({exc}); {install('dask')}") from exc
    return distributed


@contextlib.contextmanager
def local_pool(plan: PoolPlan) -> Iterator[Client]:
    """Start workers on this machine, each a process with one tile at a time, and stop them in the end."""
    distributed = require_dask()
    import dask

    workers = {
        k: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 1, "memory_limit": int(plan.memory * HARD_LIMIT), "name": name,
                "silence_logs": logging.CRITICAL, "dashboard_address": None, "env": env,
            },
        }
        for k, (name, env) in enumerate(_workers_of(plan))
    }  # fmt: skip
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"dashboard": True, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "port": 0},
    }
    quiet = {"distributed.logging.distributed": "critical", "distributed.worker.memory.spill": False,
             "distributed.worker.memory.target": False}  # fmt: skip
    with (
        dask.config.set(quiet),
        distributed.SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _workers_of(plan: PoolPlan) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each worker and what is set in its environment."""
    for k in range(plan.workers):
        if plan.cards:
            yield f"gpu{plan.cards[k]}", {"CUDA_VISIBLE_DEVICES": plan.cards[k]}
        else:
            yield f"process{k + 1}", {}


def connect(address: str, *, patience_s: float = 0.0) -> Client:
    """Connect to a scheduler that runs.

    Parameters
    ----------
    address : str
        Such as ``tcp://host:8786``.
    patience_s : float
        How long to try.

    Raises
    ------
    ClusterError
        Nobody answers there.
    """
    distributed = require_dask()
    give_up = time.monotonic() + patience_s
    while True:
        try:
            return distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as exc:
            if time.monotonic() > give_up:
                why = " ".join(str(exc).split()) or type(exc).__name__
                raise ClusterError(
                    f"no scheduler answers at {address} ({why}); is `dask scheduler` running there?"
                ) from exc
        time.sleep(NAP_SECONDS)


def workers_known(client: Client) -> Mapping[str, Mapping[str, Any]]:
    """Return what a scheduler knows of its workers, by their addresses."""
    try:
        found: Mapping[str, Mapping[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    except TypeError:  # older than 2025.4
        found = client.scheduler_info()["workers"]
    return found
