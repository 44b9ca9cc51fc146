"""What a failure on the GPU means, and the flag that says that CUDA is lost to this process.

A failure is classified by class and CUDA status, and by its text only when neither is known
(:func:`classify_failure`); CuPy need not be installed for that.

A *sticky* CUDA error destroys the context of the process; every later CUDA call returns the same error, on other cards
too. Once :func:`mark_sticky` was called, nothing in this library makes a CuPy call again.

Source of the status codes: CUDA Runtime API, enum ``cudaError``; the driver's ``CUresult`` uses the same numbers
for the codes listed here.
"""

from __future__ import annotations

import contextlib
import re
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from zemosaic_phase3.errors import DeviceError, FrameError, NoCardLeftError, NoFramesError, SpecError

FailureKind = Literal["out_of_memory", "sticky", "unavailable", "other"]


_POISONED = threading.Event()
_THREAD = threading.local()


def work_for_card(card: int) -> None:
    """Say which card this thread works for from now on."""
    _THREAD.card = card


def card_of_thread() -> int:
    """Return the card that this thread works for; 0, where CUDA's current device is, unless it said otherwise."""
    card: int = getattr(_THREAD, "card", 0)
    return card


def mark_sticky() -> None:
    """Record that CUDA is lost to this process; from here on nothing in this room calls CuPy."""
    _POISONED.set()


def is_poisoned() -> bool:
    """Return True after :func:`mark_sticky`. There is no way back but a new process."""
    return _POISONED.is_set()


def check_not_lost() -> None:
    """Call before CUDA is called, where another thread may have found it lost.

    Raises
    ------
    RuntimeError
        CUDA is lost to this process.
    """
    if is_poisoned():
        raise RuntimeError("an earlier CUDA error cannot be undone in this process; start a new process")


@contextlib.contextmanager
def noticing_sticky_errors() -> Iterator[None]:
    """Mark a sticky error as it leaves the block, before any other thread or destructor calls CUDA."""
    try:
        yield
    except BaseException as exc:
        if classify_failure(exc) == "sticky":
            mark_sticky()
        raise


_STATUS_OUT_OF_MEMORY: Final = frozenset({2})
_STATUS_STICKY: Final = frozenset(
    {
        214,  # uncorrectable ECC error
        220,  # uncorrectable NVLink error
        226,  # contained device exception
        700,  # illegal address
        702,  # launch timeout
        709,  # context is destroyed: not repairable from here, and what it owned is already gone
        710,  # assert
        714,  # hardware stack error
        715,  # illegal instruction
        716,  # misaligned address
        717,  # invalid address space
        718,  # invalid program counter
        719,  # launch failure
    }
)
_STATUS_UNAVAILABLE: Final = frozenset(
    {
        3,  # initialization error
        34,  # stub library instead of the driver
        35,  # insufficient driver
        46,  # all devices busy or prohibited
        100,  # no device
        101,  # invalid device
        209,  # no kernel image for this device
        222,  # PTX of a newer toolkit than the driver knows
        803,  # driver and kernel module do not match
    }
)

# Only these carry a CUDA status; NVRTCError, CUBLASError and others have a `status` of another enumeration.
_STATUS_CLASSES: Final = frozenset({"CUDARuntimeError", "CUDADriverError"})

_TEXT_STICKY: Final = re.compile(
    r"illegal (memory )?address|misaligned address|illegal instruction|hardware stack error|device-side assert"
    r"|cuda_?error_?(illegal_?address|launch_?(failure|failed|timeout)|assert|misaligned_?address"
    r"|hardware_?stack_?error|illegal_?instruction|invalid_?(address_?space|pc)|context_?is_?destroyed"
    r"|ecc_?uncorrectable)|unspecified launch failure",
    re.IGNORECASE,
)
_TEXT_OUT_OF_MEMORY: Final = re.compile(
    r"out of memory|cudaErrorMemoryAllocation|cuda_error_out_of_memory|bad_alloc|unable to allocate", re.IGNORECASE
)
_TEXT_UNAVAILABLE: Final = re.compile(
    r"cuda_?error_?(no_?device|insufficient_?driver|stub_?library|invalid_?device)|no cuda-capable device"
    r"|failed to load lib(cuda|nvrtc)|driver version is insufficient",
    re.IGNORECASE,
)


def exception_chain(exc: BaseException) -> Iterator[BaseException]:
    """Yield ``exc`` and everything behind it: causes, contexts, members of groups; each once, cycles included."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        # A context hidden by `raise ... from None` still tells what happened to the device.
        waiting.extend((link.__context__, link.__cause__))
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)


def _kind_by_class(exc: BaseException) -> FailureKind:
    names = {cls.__name__ for cls in type(exc).__mro__}
    status = getattr(exc, "status", None)
    if names & _STATUS_CLASSES and isinstance(status, int):
        if status in _STATUS_STICKY:
            return "sticky"
        if status in _STATUS_OUT_OF_MEMORY:
            return "out_of_memory"
        if status in _STATUS_UNAVAILABLE:
            return "unavailable"
    # cupy.cuda.memory.OutOfMemoryError is a MemoryError; the name serves for copies of it from other processes.
    if isinstance(exc, MemoryError) or "OutOfMemoryError" in names:
        return "out_of_memory"
    if isinstance(exc, ImportError) and "cupy" in f"{exc.name} {exc}".lower():
        return "unavailable"
    return "other"


def _kind_by_text(exc: BaseException) -> FailureKind:
    text = str(exc)
    if _TEXT_STICKY.search(text):
        return "sticky"
    if _TEXT_OUT_OF_MEMORY.search(text):
        return "out_of_memory"
    return "unavailable" if _TEXT_UNAVAILABLE.search(text) else "other"


def classify_failure(exc: BaseException) -> FailureKind:
    """Turn an exception into the one word that recovery acts on.

    The whole chain (cause, context, groups) is looked at, by class and CUDA status first; texts count only when
    these say nothing. In a chain that holds several kinds the gravest wins: sticky, then memory, then unavailable.

    Parameters
    ----------
    exc : BaseException
        What was raised. CuPy need not be installed: classes are known by name.

    Returns
    -------
    {"out_of_memory", "sticky", "unavailable", "other"}
        ``out_of_memory``: device or host memory ran out, a smaller request may pass. ``sticky``: CUDA is lost to
        this process. ``unavailable``: there is no usable device, driver or CuPy. ``other``: anything else.
    """
    chain = list(exception_chain(exc))
    for judge in (_kind_by_class, _kind_by_text):
        kinds = {judge(link) for link in chain}
        for kind in ("sticky", "out_of_memory", "unavailable"):
            if kind in kinds:
                return kind
    return "other"


@dataclass(frozen=True)
class Failure:
    """What went wrong on the GPU, classified once, and the exception."""

    kind: FailureKind | Literal["frames", "unsuited", "no_card"]
    error: Exception

    def __str__(self) -> str:
        """Class and text of the exception."""
        return f"{type(self.error).__name__}: {self.error}"


def failure_of(error: Exception) -> Failure:
    """Classify what a GPU attempt raised; a sticky error is recorded, see :func:`mark_sticky`.

    Returns
    -------
    Failure
        ``kind`` as :func:`classify_failure` has it; or ``frames``: the frames or what is asked for are to blame, not
        the device; or ``unsuited``: this tile is not one for the GPU, however often it is tried; or ``no_card``: each
        of several cards has failed as often as it may.
    """
    if isinstance(error, NoCardLeftError):
        return Failure("no_card", error)
    kind = classify_failure(error)
    if kind == "sticky":
        mark_sticky()
    elif isinstance(error, FrameError | NoFramesError | SpecError):
        return Failure("frames", error)
    elif isinstance(error, DeviceError):
        return Failure("unsuited", error)
    return Failure(kind, error)


def is_oom_error(exc: BaseException) -> bool:
    """Return True if ``exc`` means that memory ran out, on the device or on the host."""
    return classify_failure(exc) == "out_of_memory"


def forget_frames(error: BaseException) -> None:
    """Drop the local variables an exception keeps alive: they hold the arrays whose memory the retry needs."""
    for link in exception_chain(error):
        traceback.clear_frames(link.__traceback__)
