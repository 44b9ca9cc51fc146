"""What runs inside an attached ZeMosaic checkout: our functions in the place of its own, name by name.

:mod:`compat.attach` puts a small package in front of some modules of the checkout. Each runs the checkout's module as
ever and then hands it to :func:`complete`, which replaces single names in it. This file knows nothing of the checkout's
other files, and imports only the standard library until something is replaced.

Our doors are called like the checkout's modules, so they are loaded by their path and under private names. They import
the package ``zemosaic_phase3`` alone. Neither side ever sees the other's modules.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from zemosaic_phase3.compat.forwarding import forwarding, incompatibility
from zemosaic_phase3.errors import SelfCheckError, ZeMosaicError

logger = logging.getLogger("ZeMosaicWorker")


DOORS: Final = "zemosaic_phase3_doors"
LIBRARY: Final = Path(__file__).resolve().parents[2]
NEEDED: Final = ("numpy", "astropy", "numba", "scipy", "psutil")  # packages that stacking imports
KERNELS: Final = "zemosaic_phase3.combine.block"  # a file of kernels, imported with all that compiling them takes

REPLACED: Final[Mapping[str, tuple[str, ...]]] = {
    "zemosaic_worker": (
        "create_master_tile",
        "_stack_master_tile_auto",
        "_stack_master_tile_cpu",
        "_phase3_gpu_candidate",
        "reset_phase3_gpu_state",
    ),
    "zemosaic_align_stack": (
        "stack_winsorized_sigma_clip",
        "stack_kappa_sigma_clip",
        "stack_linear_fit_clip",
        "stack_aligned_images",
        "align_images_in_group",
        "equalize_rgb_medians_inplace",
        "_poststack_rgb_equalization",
        "_reject_outliers_kappa_sigma",
        "_reject_outliers_winsorized_sigma_clip",
    ),
    "zemosaic_align_stack_gpu": ("gpu_stack_from_arrays", "gpu_stack_from_paths", "_gpu_is_usable"),
}
"""The modules that are completed, and the functions replaced in each where the calls are compatible."""

_SHARING_STATE: Final = frozenset({"_stack_master_tile_auto", "_phase3_gpu_candidate"})
"""With one of these replaced, what the checkout knows of the GPU is what we know."""

ESSENTIAL: Final = ("zemosaic_worker", "create_master_tile")
"""The one that must be there: without it attaching has no point."""


def door(name: str) -> ModuleType:
    """Import one of our doors under a private name: its own is that of the checkout's module.

    Raises
    ------
    ModuleNotFoundError
        There is no such door.
    """
    private = f"{DOORS}.{name}"
    with _opening:
        if private in sys.modules:
            return sys.modules[private]
        source = LIBRARY / f"{name}.py"
        if not source.is_file():
            raise ModuleNotFoundError(f"No module named {private!r}", name=private)
        spec = importlib.util.spec_from_file_location(private, source)
        assert spec is not None and spec.loader is not None  # noqa: S101 - a file that ends in .py has both
        module = importlib.util.module_from_spec(spec)
        sys.modules[private] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[private]
            raise
        return module


def missing_packages(names: Iterable[str] = NEEDED) -> list[str]:
    """Return which of the packages that stacking needs this interpreter does not have."""
    return [name for name in names if importlib.util.find_spec(name) is None]


_completing = threading.Lock()
_opening = threading.RLock()
_told: set[str] = set()


def trouble() -> str:
    """Return why stacking cannot work with this interpreter, empty if nothing speaks against it.

    Numba is really imported, and a file of kernels with it: one that is there and broken ("Numba needs NumPy 2.3 or
    less") is only found so. That takes 0.3 s, once a process, of the several seconds that ZeMosaic takes to start, and
    the process that stacks needs it anyway.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 - the checkout chooses its interpreter
        return f"{sys.executable} is older than Python 3.11"
    missing = missing_packages()
    if missing:
        return f"{sys.executable} has no {missing}; install them there, or detach"
    for name in (*NEEDED, KERNELS):
        try:
            importlib.import_module(name)
        except Exception as exc:  # noqa: BLE001 - a broken package may raise anything
            return (
                f"{name} cannot be imported with {sys.executable} ({type(exc).__name__}: {exc}); repair it, or detach"
            )
    return ""


def complete(module: ModuleType) -> list[str]:
    """Replace in a module of a checkout what we do better; whatever does not fit stays as it is.

    Nothing is replaced where anything goes wrong: the checkout's own code stays in charge, and one warning says why.

    Parameters
    ----------
    module : module
        The checkout's ``zemosaic_worker``, ``zemosaic_align_stack`` or ``zemosaic_align_stack_gpu``, imported under any
        name; its functions are replaced in place.

    Returns
    -------
    list of str
        The names replaced.
    """
    try:
        with _completing:
            reason = trouble()
            names = [] if reason else _complete(module)
    except Exception as exc:  # noqa: BLE001 - whatever it is, ZeMosaic must start
        reason, names = f"{type(exc).__name__}: {exc}", []
        logger.debug("[zemosaic-phase3] %s", module.__name__, exc_info=exc)
    if reason and reason not in _told:
        _told.add(reason)
        logger.warning("[zemosaic-phase3] not used, the checkout's own code runs: %s", reason)
    return names


def _complete(module: ModuleType) -> list[str]:
    """Replace what fits, all of it or nothing."""
    stem = module.__name__.rpartition(".")[2]
    try:
        ours = door(stem)
    except ModuleNotFoundError as exc:
        if exc.name != f"{DOORS}.{stem}":
            raise
        return []  # this version has no such door
    served, kept = {}, {}
    for name in REPLACED[stem]:
        theirs, mine = getattr(module, name, None), getattr(ours, name, None)
        if mine is None or not inspect.isfunction(theirs):
            continue
        reason = incompatibility(inspect.signature(theirs), inspect.signature(mine))
        if reason:
            kept[name] = reason
        else:
            served[name] = _served(module, ours, name)
    _say_what_stays(module, kept)
    vars(module).update(served)
    if stem == ESSENTIAL[0]:
        _share(module, ours, served)
    logger.info("[zemosaic-phase3] %s: %s", module.__name__, ", ".join(served) or "nothing replaced")
    return list(served)


def _say_what_stays(module: ModuleType, kept: Mapping[str, str]) -> None:
    """Tell what was not replaced: a warning for the one that matters, a line for those who look for it."""
    for name, reason in kept.items():
        if (module.__name__.rpartition(".")[2], name) == ESSENTIAL:
            logger.warning("[zemosaic-phase3] %s.%s stays as it is: %s", module.__name__, name, reason)
    if kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items())
        logger.debug("[zemosaic-phase3] %s: as they are stay %s", module.__name__, reasons)


def _served(module: ModuleType, ours: ModuleType, name: str) -> Callable[..., Any]:
    """Return our function under the signature of the checkout's."""
    from zemosaic_phase3.compat.checkout import drop_steps, master_tile_in

    theirs, mine = getattr(module, name), getattr(ours, name)
    if (module.__name__.rpartition(".")[2], name) != ESSENTIAL:
        return forwarding(theirs, mine, prepare=drop_steps)
    return forwarding(theirs, master_tile_in(module, ours), is_our_fault=functools.partial(_costs_no_tile, module))


def _costs_no_tile(worker: ModuleType, exc: Exception) -> bool:
    """Tell an error after which the checkout makes a tile itself: any but a wrong option and a request to stop.

    A tile that failed its self-check is one of those: whatever made it wrong, the checkout's code may be spared.
    """
    stopped = getattr(worker, "Phase3TileAbortRequested", None)
    asked = (ZeMosaicError, stopped) if isinstance(stopped, type) else (ZeMosaicError,)
    return isinstance(exc, SelfCheckError) or not isinstance(exc, asked)


def _share(module: ModuleType, ours: ModuleType, served: Iterable[str]) -> None:
    """Let the checkout's worker and our door know of the GPU, and of replaced names, what the other one knows."""
    from zemosaic_phase3.compat.checkout import ReplacedNames

    if _SHARING_STATE.intersection(served) and hasattr(module, "_P3_GPU_STATE"):
        # Whoever reads or resets it there means ours: a GPU that one side has given up, the other must not try.
        module._P3_GPU_STATE = ours._P3_GPU_STATE  # type: ignore[attr-defined]
    ours._NAMES.maps[:] = [ReplacedNames(module), vars(ours)]  # noqa: SLF001 - a name in a door would be inherited
