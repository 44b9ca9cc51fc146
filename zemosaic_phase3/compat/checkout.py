"""What our functions take from the module of a checkout that they run in, beside their arguments.

These are its configuration, its way of telling messages, its limit of tiles at a time, the exception it stops with, its
list of the tiles that were made, and the names that a program or a test has replaced in it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from zemosaic_phase3.compat.forwarding import Handed, taking
from zemosaic_phase3.errors import StackCancelled
from zemosaic_phase3.progress import Callback

logger = logging.getLogger("ZeMosaicWorker")

REPLACEABLE: Final[Mapping[str, tuple[int, tuple[str, ...]]]] = {
    "_p3_gpu_stack_from_paths": (2, ("parallel_plan", "logger", "pcb_tile", "zconfig", "tile_id")),
    "_p3_gpu_is_usable": (1, ()),
    "_phase3_gpu_candidate": (2, ()),
    "_stack_master_tile_auto": (
        2, ("parallel_plan", "logger", "pcb_tile", "zconfig", "tile_id", "progress_callback"),
    ),
    "_stack_master_tile_cpu": (
        2, ("parallel_plan", "logger", "pcb_tile", "zconfig", "tile_id", "progress_callback"),
    ),
    "_safe_load_cache": (1, ("pcb", "tile_id")),
}  # fmt: skip
"""Functions that a checkout's worker may have replaced, and how we call them: positional arguments, keywords."""

VALUES: Final = ("_P3_GPU_HELPERS_AVAILABLE", "_P3_GPU_STATE")
_ABSENT: Final = object()


class ReplacedNames(Mapping[str, Any]):
    """Names of a checkout's worker that are no longer what they were when it was attached.

    A function counts if it can be called as we call it. What the checkout itself has under such a name does not: it
    would have been replaced if it were of the same kind.

    Parameters
    ----------
    worker : module
        The checkout's, with our functions in place.
    """

    def __init__(self, worker: ModuleType) -> None:
        self._worker = worker
        self._first = {name: vars(worker).get(name, _ABSENT) for name in (*REPLACEABLE, *VALUES)}
        self._told: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """Return what stands there now.

        Raises
        ------
        KeyError
            Nobody has replaced it.
        """
        first = self._first[name]
        now = vars(self._worker).get(name, first)
        if now is first:
            raise KeyError(name)
        if name in VALUES or now is None:
            return now
        found = taking(now, *REPLACEABLE[name])
        if found is None:
            if name not in self._told:
                self._told.add(name)
                logger.warning(
                    "[zemosaic-phase3] %s was replaced by a function that takes other arguments; it is not called", name
                )
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        """Names replaced since."""
        return (name for name in self._first if vars(self._worker).get(name, _ABSENT) is not self._first[name])

    def __len__(self) -> int:  # noqa: D105
        return sum(1 for _ in self)


def _is_step(args: tuple[Any, ...], details: Mapping[str, Any]) -> bool:
    """Tell a step ``(stage, done, total)`` from a message."""
    return len(args) == 3 and not details and isinstance(args[1], int) and isinstance(args[2], int)


def without_steps(callback: Callback) -> Callback:
    """Return a callback that passes messages on and drops steps.

    A stage that ZeMosaic's window does not know is shown as the whole run: a single step would fill its bar for good.
    """

    def tell(*args: Any, **details: Any) -> Any:
        return None if _is_step(args, details) else callback(*args, **details)

    return tell


def drop_steps(arguments: Handed) -> None:
    """Let a function of ours send no steps to the callback it was given."""
    callback = arguments.get("progress_callback")
    if callable(callback):
        arguments["progress_callback"] = without_steps(callback)


def through_log(worker: ModuleType, callback: Callback | None) -> Callback | None:
    """Return a callback that tells as the checkout's own code does: into its log, its counts, and to its callback."""
    if not callable(getattr(worker, "_log_and_callback", None)):
        return None if callback is None else without_steps(callback)

    def tell(key: str, progress: Any = None, level: str = "INFO", **details: Any) -> None:
        if _is_step((key, progress, level), details):
            return
        stopped: list[StackCancelled] = []

        def heard(*args: Any, **keywords: Any) -> Any:
            try:
                return None if callback is None else callback(*args, **keywords)
            except StackCancelled as exc:  # which the checkout would take for a fault of the callback
                stopped.append(exc)

        worker._log_and_callback(key, progress, level, callback=heard, **details)
        if stopped:
            raise stopped[0]

    return tell


def _configuration(worker: ModuleType) -> SimpleNamespace:
    """Return the checkout's configuration, as its own ``create_master_tile`` reads it; empty where it is unreadable."""
    load = getattr(getattr(worker, "zemosaic_config", None), "load_config", None)
    if load is None:
        return SimpleNamespace()
    try:
        return SimpleNamespace(**load())
    except Exception as exc:  # noqa: BLE001 - the checkout's code; its defaults serve then, as they do there
        logger.warning("[zemosaic-phase3] the configuration cannot be read (%s); defaults are used", exc)
        return SimpleNamespace()


def _pads(create_master_tile: Callable[..., Any]) -> bool:
    """Tell whether a checkout lets tiles go on around their reference, as newer ones do, by what its function notes."""
    code = getattr(inspect.unwrap(create_master_tile), "__code__", None)
    return code is not None and {"pad_left", "pad_top"} <= {*code.co_varnames, *code.co_cellvars}


def master_tile_in(worker: ModuleType, ours: ModuleType) -> Callable[..., Any]:
    """Return our ``create_master_tile`` with what the checkout's own takes from its module, not from its arguments."""
    signature = inspect.signature(ours.create_master_tile)
    pads = _pads(worker.create_master_tile)

    @functools.wraps(ours.create_master_tile)
    def create_master_tile(*args: Any, **keywords: Any) -> Any:
        arguments = signature.bind(*args, **keywords).arguments
        slots = getattr(worker, "_PH3_CONCURRENCY_SEMAPHORE", None)
        if slots is not None:  # the run assigns a new one when it changes its limit
            ours._PH3_CONCURRENCY_SEMAPHORE = slots  # type: ignore[attr-defined]
        arguments["progress_callback"] = through_log(worker, arguments.get("progress_callback"))
        result = ours.create_master_tile(**{"zconfig": _configuration(worker), "pad_canvas": pads, **arguments})
        stopped = getattr(worker, "Phase3TileAbortRequested", None)
        event = arguments.get("abort_event")
        if result[0][0] is None and stopped is not None and event is not None and event.is_set():
            raise stopped(f"tile={arguments.get('tile_id')}")
        remember = getattr(worker, "_register_master_tile_identity", None)
        if result[0][0] is not None and remember is not None:
            remember(result[0][0], f"tile:{int(arguments['tile_id']):04d}")  # the form in which later phases ask for it
        return result

    return create_master_tile
