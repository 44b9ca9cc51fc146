"""Which device stacks a tile, and what happens when the GPU fails ("Mode C").

A tile goes to the GPU if there is a healthy one. It is recomputed whole on the CPU if the GPU fails twice; then the GPU
is off for the rest of the run. CPU and GPU give the same bits, so nobody downstream can tell.

What the tiles of one run know of the GPU stands in a dictionary under names that existing programs read, change and
replace. A policy therefore looks up every such name at each call, in the namespace it was made for: that of the door
``zemosaic_worker``, or ``OWN`` where no door is involved.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from zemosaic_phase3.errors import StackCancelled, ZeMosaicError
from zemosaic_phase3.records import DeviceUse
from zemosaic_phase3.runtime import cuda
from zemosaic_phase3.runtime.cuda_failure import Failure, failure_of, forget_frames

LOGGER = logging.getLogger("ZeMosaicWorker")
Result = TypeVar("Result")

FRESH: Final[Mapping[str, Any]] = {
    "allowed": True,
    "hard_disabled": False,
    "health_checked": False,
    "healthy": False,
    "candidate_announced": False,
    "success_announced": False,
    "unsuited_announced": False,
    "health_reason": "",
}
"""What a new run knows of the GPU."""

LOCK: Final = threading.RLock()
"""Held while the state of a run is read or changed; tiles run in threads."""


@dataclass(frozen=True)
class DeviceRequest:
    """What the caller says about the device of a tile.

    ``wants_cpu``: the GPU is not to be tried. ``plan_allows``: the plan of the run does not forbid the GPU.
    ``require_gpu``: a fall back to the CPU is an error. ``candidate``: who tells whether to try the GPU; None: the
    policy itself.
    """

    wants_cpu: bool = False
    plan_allows: bool = True
    require_gpu: bool = False
    logger: logging.Logger = LOGGER
    candidate: Callable[[], bool] | None = None


class DevicePolicy:
    """Mode C over the names of one namespace.

    Parameters
    ----------
    names : mapping
        Holds ``_P3_GPU_STATE``, ``_P3_GPU_HELPERS_AVAILABLE``, ``_P3_GPU_HELPERS_REASON``, ``_p3_gpu_is_usable``,
        ``_p3_why_unusable`` and ``_hard_disable``, looked up at each call.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names

    @property
    def state(self) -> dict[str, Any]:
        """What the tiles of the run know of the GPU."""
        state: dict[str, Any] = self._names["_P3_GPU_STATE"]
        return state

    def reset(self) -> None:
        """Start a new run: the GPU is allowed, and its health is checked again with the first tile.

        A sticky CUDA error outlives the run. It is the health check that refuses then.
        """
        with LOCK:
            self.state.clear()
            self.state.update(FRESH)

    def is_hard_disabled(self) -> bool:
        """Return True after two failures, or one after which CUDA cannot be used."""
        with LOCK:
            return bool(self.state.get("hard_disabled", False))

    def hard_disable(self, logger: logging.Logger) -> None:
        """Turn the GPU off for the rest of the run; says so once, whoever comes first."""
        if self._is_first("hard_disabled"):
            logger.warning("[P3][GPU] GPU disabled for remaining Phase 3 tiles after repeated failures.")

    def distrust(self, logger: logging.Logger) -> None:
        """Turn the GPU off for the rest of the run, because a tile of its was found wrong."""
        self._names["_hard_disable"](logger)

    def _is_first(self, key: str) -> bool:
        """Return True for the first caller of the run only."""
        with LOCK:
            first = not self.state.get(key, False)
            self.state[key] = True
        return first

    # ----------------------------------------------------------------------- who is a candidate

    def refusal(self, plan_allows: bool) -> str:
        """Return why a tile cannot go to the GPU as far as is known, empty if nothing speaks against it."""
        with LOCK:
            if self.is_hard_disabled():
                return "the GPU was disabled after failures earlier in this run"
            if not self.state.get("allowed", True):
                return "the GPU is not allowed in this run"
            if not self._names["_P3_GPU_HELPERS_AVAILABLE"]:
                return str(self._names["_P3_GPU_HELPERS_REASON"]) or "the GPU engine cannot be imported"
            if not plan_allows:
                return "the plan says that the GPU is not to be used"
            if self.state.get("health_checked", False) and not self.state.get("healthy", False):
                return f"the GPU failed its health check: {self.state.get('health_reason') or 'no reason given'}"
        return ""

    def candidate(self, plan_allows: bool, logger: logging.Logger) -> bool:
        """Return True if the next tile should try the GPU.

        The health check runs once per run, with the first tile that asks; tiles in other threads wait for its answer.
        """
        with LOCK:
            if self.refusal(plan_allows):
                return False
            if not self.state.get("health_checked", False):
                reason = self._illness(logger)
                self.state["healthy"] = not reason
                self.state["health_reason"] = reason
                self.state["health_checked"] = True
            return bool(self.state.get("healthy", False))

    def require_candidate(self, request: DeviceRequest) -> None:
        """Refuse before a frame is read what is bound to fail: a GPU is required, and there is none.

        Raises
        ------
        ZeMosaicError
            Says why.
        """
        ask = request.candidate or partial(self.candidate, request.plan_allows, request.logger)
        if request.require_gpu and not ask():
            _refuse_cpu(self._why_cpu([], request), [])

    def _illness(self, logger: logging.Logger) -> str:
        """Check the health of the GPU; return why it cannot be used, empty if it can."""
        try:
            if self._names["_p3_gpu_is_usable"](logger):
                return ""
            return self._names["_p3_why_unusable"]() or "it gives no reason"
        except Exception as exc:  # noqa: BLE001 - the check is a GPU attempt: whatever it raises means no
            failure = failure_of(exc)
            logger.warning("[P3][GPU] the health check failed: %s", failure)
            return str(failure)

    # ----------------------------------------------------------------------- one tile

    def stack(
        self, on_gpu: Callable[[bool], Result], on_cpu: Callable[[], Result], request: DeviceRequest
    ) -> tuple[Result, DeviceUse]:
        """Stack one tile on the GPU if there is a healthy one, else, or if that fails, the whole tile on the CPU.

        Parameters
        ----------
        on_gpu : callable
            Stacks the tile on the GPU; called with True for an attempt with less memory. Whatever it raises is a
            failure, a wrong result too.
        on_cpu : callable
            Stacks the tile on the CPU.
        request : DeviceRequest

        Raises
        ------
        ZeMosaicError
            The GPU is required and did not stack the tile.
        StackCancelled
            A callback asked to stop.
        """
        result: Result | None = None
        failures: list[Failure] = []
        ask = request.candidate or partial(self.candidate, request.plan_allows, request.logger)
        if not request.wants_cpu and ask():
            if self._is_first("candidate_announced"):
                request.logger.info("[P3][GPU] Phase 3 GPU auto mode enabled (mode=C, candidate=True)")
            result, failures = self._try_gpu(on_gpu, request.logger)
        if result is not None:
            if self._is_first("success_announced"):
                request.logger.info("[P3][GPU] Using GPU stacker for Phase 3 (mode=auto)")
            reason = f"GPU, second attempt after {failures[0]}" if failures else "GPU"
            return result, DeviceUse(True, len(failures) + 1, reason)
        reason = self._why_cpu(failures, request)
        if request.require_gpu:
            _refuse_cpu(reason, failures)
        return on_cpu(), DeviceUse(False, len(failures), reason)

    def _try_gpu(self, on_gpu: Callable[[bool], Result], logger: logging.Logger) -> tuple[Result | None, list[Failure]]:
        """Try at most twice, the second time with less memory if that was the trouble; return what went wrong too."""
        first = _attempt(on_gpu, less_memory=False)
        if not isinstance(first, Failure):
            return first, []
        if first.kind in ("sticky", "frames", "unsuited", "no_card"):
            self._give_up(first, logger, second=False)
            return None, [first]
        forget_frames(first.error)
        if self.is_hard_disabled():  # by another tile, meanwhile
            logger.warning("[P3][GPU] %s; the GPU is disabled by now, no retry", first)
            return None, [first]
        less = first.kind == "out_of_memory"
        remedy = " with freed pools and a tighter plan" if less else ""
        logger.warning("[P3][GPU] %s, retrying once%s: %s", type(first.error).__name__, remedy, first.error)
        second = _attempt(on_gpu, less_memory=less)
        if not isinstance(second, Failure):
            return second, [first]
        self._give_up(second, logger, second=True)
        return None, [first, second]

    def _give_up(self, failure: Failure, logger: logging.Logger, *, second: bool) -> None:
        """Act on a failure after which there is no further attempt: log it, disable the GPU if it is to blame."""
        if failure.kind == "frames":
            logger.warning("[P3][GPU] %s; this concerns the frames, the CPU decides", failure)
        elif failure.kind == "unsuited" and not second:  # a second attempt was made with less memory
            level = logging.WARNING if self._is_first("unsuited_announced") else logging.DEBUG
            logger.log(level, "[P3][GPU] %s; the CPU stacks such tiles, the GPU stays on", failure)
        else:
            alone = "CUDA cannot be used again in this process" if failure.kind == "sticky" else "Every card failed"
            why = "Second GPU attempt failed" if second else alone
            text = "[P3][GPU] %s; disabling Phase 3 GPU for this run: %s"
            logger.error(text, why, failure, exc_info=failure.error)
            self._names["_hard_disable"](logger)
        forget_frames(failure.error)
        if second and failure.kind == "out_of_memory":
            _release_pools(logger)

    def _why_cpu(self, failures: list[Failure], request: DeviceRequest) -> str:
        """Say in a few words why the CPU stacks a tile."""
        if request.wants_cpu:
            return "the CPU was asked for"
        if failures and failures[-1].kind == "unsuited" and len(failures) == 1:
            return f"the GPU does not take this tile: {failures[-1].error}"
        if failures:
            return f"the GPU failed: {failures[-1]}"
        return self.refusal(request.plan_allows) or "the tile is no GPU candidate"


def _attempt(on_gpu: Callable[[bool], Result], *, less_memory: bool) -> Result | Failure:
    """Try the GPU once; an error is returned, so that recovery runs outside of its ``except`` block."""
    try:
        if less_memory:
            cuda.free_pools()
        return on_gpu(less_memory)
    except StackCancelled:
        raise
    except Exception as exc:  # noqa: BLE001 - the one per attempt: whatever goes wrong on the GPU, the CPU can redo
        return failure_of(exc)


def _refuse_cpu(reason: str, failures: list[Failure]) -> None:
    if failures and failures[-1].kind == "frames":
        raise failures[-1].error
    raise ZeMosaicError(f"the GPU is required, but {reason}; see `zemosaic-phase3 doctor`, or allow the CPU") from (
        failures[-1].error if failures else None
    )


def _release_pools(logger: logging.Logger) -> None:
    """Give pooled device and pinned host memory back before the CPU recomputes the tile."""
    try:
        cuda.free_pools()
    except RuntimeError as exc:  # CuPy's CUDARuntimeError
        logger.warning("[P3][GPU] the memory pools could not be freed: %s", failure_of(exc))


# --------------------------------------------------------------------------- without a door

try:
    from zemosaic_phase3.engine.gpu_check import gpu_is_usable, why_unusable
except Exception as exc:  # noqa: BLE001 - a broken CuPy or Numba may raise anything when it is imported
    _REASON = f"the GPU engine cannot be imported ({type(exc).__name__}: {exc})"

    def gpu_is_usable(logger: logging.Logger | None = None) -> bool:
        """Return False: there is no engine."""
        return False

    def why_unusable() -> str:
        """Return why there is no engine."""
        return _REASON
else:
    _REASON = ""

OWN: Final[dict[str, Any]] = {
    "_P3_GPU_STATE": dict(FRESH),
    "_P3_GPU_HELPERS_AVAILABLE": not _REASON,
    "_P3_GPU_HELPERS_REASON": _REASON,
    "_p3_gpu_is_usable": gpu_is_usable,
    "_p3_why_unusable": why_unusable,
}
"""The names of this package itself; the door ``zemosaic_worker`` shares the state."""

POLICY: Final = DevicePolicy(OWN)
OWN["_hard_disable"] = POLICY.hard_disable
