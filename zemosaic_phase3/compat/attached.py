"""What runs inside an attached ZeMosaic checkout: our functions in the place of its own, name by name.

:mod:`compat.attach` puts a small package in front of some modules of the checkout. Each runs the checkout's module as
ever and then hands it to :func:`complete`, which replaces single names in it. This file knows nothing of the checkout's
other files, and imports only the standard library until something is replaced.

Our doors are called like the checkout's modules, so they are loaded by their path and under private names. They import
the package ``zemosaic_phase3`` alone. Neither side ever sees the other's modules.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

logger = logging.getLogger("ZeMosaicWorker")


DOORS: Final = "zemosaic_phase3_doors"
LIBRARY: Final = Path(__file__).resolve().parents[2]
NEEDED: Final = ("numpy", "astropy", "numba", "scipy", "psutil")  # packages that stacking imports

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


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _named(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in signature.parameters.items() if p.kind not in _VARIADIC}


def _is_private_option(parameter: inspect.Parameter) -> bool:
    """Tell a parameter by which a function of the checkout talks to itself, such as ``_depth=0``."""
    return parameter.name.startswith("_") and parameter.default is not inspect.Parameter.empty


def _takes_any(signature: inspect.Signature, kind: Any) -> str:
    """Name of the ``*args`` or ``**keywords`` of a signature; empty where it has none."""
    return next((p.name for p in signature.parameters.values() if p.kind is kind), "")


def incompatibility(theirs: inspect.Signature, ours: inspect.Signature) -> str:
    """Return why calls of one function cannot be handed to the other; empty if they can.

    Calls are bound to the checkout's own signature and passed on by name, so order and defaults may differ, but every
    parameter of theirs must be one of ours, and whatever ours requires must be one of theirs. Where theirs takes any
    number of positional arguments, those it names must be our first ones in our order.
    """
    given, known = _named(theirs), _named(ours)
    unknown = [name for name, p in given.items() if name not in known and not _is_private_option(p)]
    if unknown:
        return f"it has parameters that are unknown here: {', '.join(unknown)}"
    if _takes_any(theirs, inspect.Parameter.VAR_POSITIONAL):
        first = [name for name, p in given.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        return "" if first == list(known)[: len(first)] else "its positional arguments are in another order"
    missing = [name for name, p in known.items() if p.default is inspect.Parameter.empty and name not in given]
    if missing and not _takes_any(theirs, inspect.Parameter.VAR_KEYWORD):
        return f"it lacks parameters that are needed here: {', '.join(missing)}"
    return ""


def _handed_on(
    theirs: inspect.Signature, ours: inspect.Signature, args: tuple[Any, ...], keywords: dict[str, Any]
) -> inspect.BoundArguments:
    """Bind a call of theirs to our signature.

    Raises
    ------
    TypeError
        It carries what is unknown here, or lacks what is needed.
    """
    known = _named(ours)
    private = {name for name, p in _named(theirs).items() if name not in known and _is_private_option(p)}
    if _takes_any(theirs, inspect.Parameter.VAR_POSITIONAL):
        return ours.bind(*args, **{name: value for name, value in keywords.items() if name not in private})
    bound = theirs.bind(*args, **keywords)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    arguments |= arguments.pop(_takes_any(theirs, inspect.Parameter.VAR_KEYWORD), {})
    return ours.bind(**{name: value for name, value in arguments.items() if name not in private})


def forwarding(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the signature of theirs that calls ours.

    A call that does not fit ours (where theirs takes any keyword, say) goes to theirs, with a warning.
    """
    signature, own = inspect.signature(theirs), inspect.signature(ours)
    told: set[str] = set()

    @functools.wraps(theirs)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            bound = _handed_on(signature, own, args, keywords)
        except TypeError as exc:
            if str(exc) not in told:
                told.add(str(exc))
                logger.warning("[zemosaic-phase3] %s: %s; the checkout's own code runs", theirs.__name__, exc)
            return theirs(*args, **keywords)
        return ours(*bound.args, **bound.kwargs)

    return call


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


def master_tile_in(worker: ModuleType, ours: ModuleType) -> Callable[..., Any]:
    """Return our ``create_master_tile`` with what the checkout's own takes from its module, not from its arguments.

    These are its configuration, its limit of tiles at a time, the exception it stops with, and its list of the tiles
    that were made.
    """
    signature = inspect.signature(ours.create_master_tile)

    @functools.wraps(ours.create_master_tile)
    def create_master_tile(*args: Any, **keywords: Any) -> Any:
        arguments = signature.bind(*args, **keywords).arguments
        slots = getattr(worker, "_PH3_CONCURRENCY_SEMAPHORE", None)
        if slots is not None:  # the run assigns a new one when it changes its limit
            ours._PH3_CONCURRENCY_SEMAPHORE = slots  # type: ignore[attr-defined]
        result = ours.create_master_tile(**{"zconfig": _configuration(worker), **arguments})
        stopped = getattr(worker, "Phase3TileAbortRequested", None)
        event = arguments.get("abort_event")
        if result[0][0] is None and stopped is not None and event is not None and event.is_set():
            raise stopped(f"tile={arguments.get('tile_id')}")
        remember = getattr(worker, "_register_master_tile_identity", None)
        if result[0][0] is not None and remember is not None:
            remember(result[0][0], f"tile:{int(arguments['tile_id']):04d}")  # the form in which later phases ask for it
        return result

    return create_master_tile


def missing_packages(names: Iterable[str] = NEEDED) -> list[str]:
    """Return which of the packages that stacking needs this interpreter does not have."""
    return [name for name in names if importlib.util.find_spec(name) is None]


_completing = threading.Lock()
_opening = threading.RLock()


def complete(module: ModuleType) -> list[str]:
    """Replace in a module of a checkout what we do better; whatever does not fit stays as it is, with a warning.

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
    if sys.version_info < (3, 11):  # noqa: UP036 - the checkout chooses its interpreter
        logger.warning("[zemosaic-phase3] not used: %s is older than Python 3.11", sys.executable)
        return []
    missing = missing_packages()
    if missing:
        logger.warning(
            "[zemosaic-phase3] not used: %s has no %s; install them there, or detach", sys.executable, missing
        )
        return []
    stem = module.__name__.rpartition(".")[2]
    with _completing:
        try:
            ours = door(stem)
        except ModuleNotFoundError as exc:
            if exc.name != f"{DOORS}.{stem}":
                raise
            return []  # this version has no such door
        names = [name for name in REPLACED[stem] if _replace(module, ours, name)]
        if _SHARING_STATE.intersection(names) and hasattr(module, "_P3_GPU_STATE"):
            # Whoever reads or resets it there means ours: a GPU that one side has given up, the other must not try.
            module._P3_GPU_STATE = ours._P3_GPU_STATE  # type: ignore[attr-defined]
    logger.info("[zemosaic-phase3] %s: %s", module.__name__, ", ".join(names) or "nothing replaced")
    return names


def _replace(module: ModuleType, ours: ModuleType, name: str) -> bool:
    theirs, mine = getattr(module, name, None), getattr(ours, name, None)
    if mine is None or not inspect.isfunction(theirs):
        return False
    reason = incompatibility(inspect.signature(theirs), inspect.signature(mine))
    if reason:
        logger.warning("[zemosaic-phase3] %s.%s stays as it is: %s", module.__name__, name, reason)
        return False
    served = mine
    if (module.__name__.rpartition(".")[2], name) == ESSENTIAL:
        served = master_tile_in(module, ours)
    setattr(module, name, forwarding(theirs, served))
    return True
