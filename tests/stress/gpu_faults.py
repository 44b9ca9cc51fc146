"""Small tiles by the hundred on a GPU that fails at random: no tile may be lost or wrong. Prints a table.

Tiles come in runs, as of one mosaic. Faults are put into the engine's own calls: memory that runs out, a launch that
fails, a sticky CUDA error (after which CUDA is left alone, until the next run here pretends to be a new process), a
result of zeros, without a valid pixel, or a little off everywhere (which the self-check finds), and a slow card.
Each tile goes the way of every run (``pipeline.stack_files.stacker_of`` with ``pipeline.device_policy``), and must have
the CPU's bits; a tile is tried twice at most, and a run turns the GPU off once at most.

    python tests/stress/gpu_faults.py [--tiles N] [--seed N] [--output FILE]      on a card, with CuPy
    python tests/stress/gpu_faults.py --host [...]      the same kernels on the processor, built by g++
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import logging
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "support"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from zemosaic_phase3.engine import cpu, gpu, gpu_card  # noqa: E402 - found by the lines above
from zemosaic_phase3.engine.job import StackResult, make_job  # noqa: E402
from zemosaic_phase3.engine.resources import Resources  # noqa: E402
from zemosaic_phase3.io.frame import Frame  # noqa: E402
from zemosaic_phase3.io.open_frame import open_source  # noqa: E402
from zemosaic_phase3.methods import REJECTIONS, Rejection  # noqa: E402
from zemosaic_phase3.pipeline.device_policy import FRESH, OWN, DevicePolicy, DeviceRequest  # noqa: E402
from zemosaic_phase3.pipeline.stack_files import stacker_of  # noqa: E402
from zemosaic_phase3.runtime import cuda_failure  # noqa: E402
from zemosaic_phase3.spec import StackSpec  # noqa: E402

RUN: Final = 10  # tiles of a run
FAULTS: Final = ("out of memory", "launch", "sticky", "zeros", "no valid pixel", "off", "slow")
OFTEN: Final = 0.25  # of the attempts have a fault
RARELY: Final = 0.02  # of the attempts lose CUDA
RESOURCES: Final = Resources(workers=2, memory=1 << 30)


class CUDARuntimeError(RuntimeError):
    """As CuPy's: known by its name and its status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"CUDA status {status}")
        self.status = status


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


@dataclass
class Record:
    """What became of the tiles, and what was wrong."""

    tiles: int = 0
    runs: int = 0
    injected: collections.Counter[str] = field(default_factory=collections.Counter)
    made_by: collections.Counter[str] = field(default_factory=collections.Counter)
    disabled_runs: int = 0
    wrong: list[str] = field(default_factory=list)


class Faults:
    """Puts the faults of the next attempt into the engine; ``due`` is the one that is next."""

    def __init__(self, chance: random.Random, injected: collections.Counter[str]) -> None:
        self.chance, self.injected, self.attempts, self.due = chance, injected, 0, ""

    def draw(self) -> str:
        """Choose the fault of an attempt, or none."""
        number = self.chance.random()
        if number < RARELY:
            return "sticky"
        return self.chance.choice([name for name in FAULTS if name != "sticky"]) if number < OFTEN else ""

    def stack(self, right: Callable[..., StackResult]) -> Callable[..., StackResult]:
        """Return the engine with faults in its results."""

        def stack(*arguments: Any) -> StackResult:
            self.attempts += 1
            self.due = self.draw()
            if self.due:
                self.injected[self.due] += 1
            result = right(*arguments)
            if self.due == "zeros":
                result.image[...] = 0.0
            elif self.due == "no valid pixel":
                result.image[...] = np.nan
            elif self.due == "off":
                result.image[...] += np.float32(0.05)
            return result

        return stack

    def combine(self, right: Callable[..., None]) -> Callable[..., None]:
        """Return the card's method with faults in its calls."""

        def combine(card: Any, slab: Any) -> None:
            if self.due == "out of memory":
                raise OutOfMemoryError("Out of memory allocating 5 bytes")
            if self.due == "launch":
                raise CUDARuntimeError(1)
            if self.due == "sticky":
                raise CUDARuntimeError(719)
            if self.due == "slow":
                time.sleep(0.02)
            right(card, slab)

        return combine


@contextlib.contextmanager
def injected(faults: Faults) -> Iterator[None]:
    """Let the engine fail within the block."""
    stack, combine, lost = gpu.stack, gpu_card.Card.combine, cuda_failure._POISONED  # noqa: SLF001 - a new process
    gpu.stack, gpu_card.Card.combine = faults.stack(stack), faults.combine(combine)  # type: ignore[method-assign]
    try:
        yield
    finally:
        gpu.stack, gpu_card.Card.combine = stack, combine  # type: ignore[method-assign]
        cuda_failure._POISONED = lost  # noqa: SLF001


def tile_of(chance: random.Random, methods: Sequence[Rejection]) -> tuple[list[Frame], StackSpec]:
    """Return the frames of a small tile, and how they are stacked."""
    rng = np.random.default_rng(chance.randrange(1 << 30))
    shape = (chance.randint(16, 40), chance.randint(16, 60), *chance.choice(((), (3,))))
    frames = []
    for _ in range(chance.randint(3, 14)):
        pixels = rng.normal(1000.0, 30.0, shape)
        pixels[rng.random(shape) < 0.02] += 3000.0
        frames.append(Frame(open_source(pixels.astype(np.float32))))
    row = chance.choice(methods)
    choice: dict[str, Any] = {} if row.choice is None else {row.choice[0]: row.choice[1]}
    spec = StackSpec(reject=row.name, normalize="additive", weight="noise_variance", **choice)  # type: ignore[arg-type]
    return frames, spec


class Disabled(logging.Handler):
    """Counts how often a run says that it turns the GPU off."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a message."""
        self.count += "GPU disabled for remaining" in record.getMessage()


def one_run(tiles: int, faults: Faults, record: Record, methods: Sequence[Rejection]) -> None:
    """Stack the tiles of one run."""
    cuda_failure._POISONED = threading.Event()  # noqa: SLF001 - a new process
    names = {**OWN, "_P3_GPU_STATE": dict(FRESH), "_p3_gpu_is_usable": lambda logger=None: True}
    policy = DevicePolicy(names)
    names["_hard_disable"] = policy.hard_disable
    told = Disabled()
    logger = logging.getLogger("ZeMosaicWorker")
    logger.addHandler(told)
    try:
        stacker = stacker_of(policy, DeviceRequest(logger=logger), RESOURCES, None)
        for _ in range(tiles):
            frames, spec = tile_of(faults.chance, methods)
            expected = cpu.stack(make_job(frames, spec), RESOURCES)
            before, off = faults.attempts, policy.is_hard_disabled()
            where = f"tile {record.tiles}, {spec.reject}"
            record.tiles += 1
            try:
                made = stacker(frames, spec, 0)
            except Exception as exc:  # noqa: BLE001 - to be counted
                record.wrong.append(f"{where}: lost, {type(exc).__name__}: {exc}")
                continue
            tried = faults.attempts - before
            record.made_by[f"{'GPU' if made.device.used_gpu else 'CPU'}, {tried} attempts on the GPU"] += 1
            for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
                if not np.array_equal(getattr(made, name), getattr(expected, name), equal_nan=True):
                    record.wrong.append(f"{where}: {name} is not the CPU's (last fault: {faults.due or 'none'})")
            if tried > 2 or (off and tried):
                record.wrong.append(f"{where}: {tried} attempts on the GPU, which was {'off' if off else 'on'}")
        if told.count > 1:
            record.wrong.append(f"run {record.runs}: the GPU was turned off {told.count} times")
        record.disabled_runs += policy.is_hard_disabled()
        record.runs += 1
    finally:
        logger.removeHandler(told)


def faulty(tiles: int, seed: int, methods: Sequence[Rejection] = REJECTIONS) -> Record:
    """Stack so many tiles on a GPU that fails; returns what was found."""
    record = Record()
    faults = Faults(random.Random(seed), record.injected)  # noqa: S311 - not for secrets
    with injected(faults):
        for start in range(0, tiles, RUN):
            one_run(min(RUN, tiles - start), faults, record, methods)
    return record


def report(record: Record, where: str, command: str) -> str:
    """Return what is written into ``benchmarks/results/gpu_faults.md``."""
    lines = [
        "# Tiles on a GPU that fails", "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`; {where}, {platform.system()}, python "
        f"{platform.python_version()}, numpy {metadata.version('numpy')}, numba {metadata.version('numba')}", "",
        f"{record.tiles} tiles in {record.runs} runs, {record.disabled_runs} of which turned the GPU off. "
        + ("Every tile has the CPU's bits." if not record.wrong else f"WRONG: {'; '.join(record.wrong[:10])}."), "",
        "| fault | put in |", "|---|---:|", *(f"| {name} | {record.injected[name]} |" for name in FAULTS), "",
        "| tile made by | tiles |", "|---|---:|",
        *(f"| {how} | {count} |" for how, count in sorted(record.made_by.items())),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    """Return 0 if every tile was right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiles", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--host", action="store_true", help="without a card: kernels built by g++")
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    logging.getLogger("ZeMosaicWorker").propagate = False
    with contextlib.ExitStack() as stack:
        if args.host:
            import pytest
            from host_cupy import HostCupy, installed

            patch = stack.enter_context(pytest.MonkeyPatch.context())
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(installed(HostCupy(place), patch))
            where = "kernels on the processor"
        else:
            from zemosaic_phase3.engine.gpu_check import usability
            from zemosaic_phase3.runtime.cuda import cupy_module

            found = usability()
            if not found.usable:
                sys.stderr.write(f"no GPU can be used: {found.reason}; {found.remedy}\n")
                return 2
            cupy = cupy_module()
            where = f"{cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()}, CuPy {cupy.__version__}"
        record = faulty(args.tiles, args.seed)
    command = f"python tests/stress/gpu_faults.py --tiles {args.tiles} --seed {args.seed}{' --host' * args.host}"
    text = report(record, where, command)
    sys.stdout.write(text)
    if args.output is not None:
        args.output.write_text(text)
    return int(bool(record.wrong))


if __name__ == "__main__":
    sys.exit(main())
