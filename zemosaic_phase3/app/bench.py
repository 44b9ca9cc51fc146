"""How fast this machine stacks, and what limits it.

One synthetic stack lies in memory, and every method is timed on it in the same run as the read bandwidth of memory:

* *combine*: rejection and combination alone, by the engine's own step, of samples that lie in memory ready to use;
* *stack*: the whole engine on the same frames as arrays, which copies every sample into slabs first;
* *from files*, where asked for: the whole engine on the same frames as 16-bit FITS files, just written, so that the
  system still holds them in memory and no disk is waited for.

Every figure is the median of the repeats after one pass that is not counted (it compiles, and touches the memory);
work of more than ``PATIENCE_S`` seconds is repeated less often.

What limits a method, by rule: *reading* if reading the files alone takes at least half of its time from files;
otherwise *memory* if combining takes its samples at ``MEMORY_SHARE`` of the read bandwidth or faster; otherwise
*compute*.
"""

from __future__ import annotations

import bisect
import logging
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.app import doctor, summary
from zemosaic_phase3.engine.cpu import combine_slab, slab_plan
from zemosaic_phase3.engine.cpu import stack as stack_on_cpu
from zemosaic_phase3.engine.job import Job, empty_result, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab import SampleSlab
from zemosaic_phase3.engine.slab_plan import FEW_ROWS, OUTPUT_MAPS, stack_bytes
from zemosaic_phase3.errors import OutputError, PlanError, SpecError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.methods import ALIASES, REJECTIONS
from zemosaic_phase3.progress import Callback, notify
from zemosaic_phase3.runtime.jit import kernel
from zemosaic_phase3.runtime.limits import available_memory, memory_text, usable_cpus
from zemosaic_phase3.runtime.threads import parallel_map
from zemosaic_phase3.spec import StackSpec

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("zemosaic.bench")


SKY_ADU, NOISE_ADU = 1000.0, 30.0  # of every frame, before it is rounded to whole ADU
HIT_SHARE: Final = 0.002  # of the samples, hit by something that is not the sky
HIT_ADU: Final = (200.0, 20000.0)  # what a hit adds
MIN_SIDE: Final = 8  # pixels; no frame is smaller
BANDWIDTH_BYTES: Final = 256 << 20  # read to measure memory, at least: no processor's caches hold it
MEMORY_SHARE: Final = 0.5  # of the read bandwidth, from which on memory counts as the limit
PATIENCE_S: Final = 10.0  # of repeats of one piece of work, after which there is no further one
BUSY_LOAD: Final = 0.5  # load average before the run from which on other work is mentioned

LIMITS: Final = ("reading", "memory", "compute")


def methods() -> dict[str, StackSpec]:
    """Return what can be timed, by name: ``mean`` and ``median`` of all samples, and each rejection there is.

    A rejection of several kinds has a name for each, such as ``winsorized:pixinsight``: the table has room for no more.
    A rejection has its own default limits, but Huber's winsorizing 3 and 3, as other programs are usually timed. Frames
    are neither normalised nor weighted.
    """
    plain = StackSpec(normalize="none", weight="none", reject="none")
    found = {"mean": plain, "median": replace(plain, combine="median")}
    for row in REJECTIONS:
        if row.name == "none":
            continue
        options: dict[str, Any] = {"reject": row.name}
        kind = row.name
        if row.choice is not None:
            options |= [row.choice]
            kind = f"{next(short for short, name in ALIASES.items() if name == row.name)}:{row.choice[1]}"
        if row.kernel == "winsorized_huber":
            options |= {"kappa_low": 3.0, "kappa_high": 3.0}
        found[kind] = replace(plain, **options)
    return found


def chosen_methods(names: Iterable[str] | None) -> tuple[str, ...]:
    """Return the methods that names mean, in the order of :func:`methods`; None means all.

    Parameters
    ----------
    names : iterable of str or None
        As in :func:`methods`, or a rejection by its name or an alias, which means every kind of it.

    Raises
    ------
    SpecError
        A name is unknown, or there is none.
    """
    known = methods()
    if names is None:
        return tuple(known)
    wanted: set[str] = set()
    for text in names:
        name = text.strip().lower().replace("-", "_")
        same = {
            full for full, spec in known.items() if full == name or spec.reject == ALIASES.get(name, name) != "none"
        }
        if not same:
            raise SpecError(f"unknown method {text.strip()!r}; choose of: {', '.join(known)}")
        wanted |= same
    if not wanted:
        raise SpecError(f"no method to time; choose of: {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


@dataclass(frozen=True)
class BenchSpec:
    """What is timed: a stack of ``frames`` frames of ``(height, width, channels)``, and by what. Checked when made.

    ``workers`` None: the cores this process may use. ``memory`` bytes for everything, None: half of what is available.
    """

    frames: int = 50
    height: int = 1080
    width: int = 1920
    channels: int = 3
    methods: tuple[str, ...] = ()  # empty: all
    repeat: int = 3
    workers: int | None = None
    memory: int | None = None
    files: bool = False
    seed: int = 1

    def __post_init__(self) -> None:  # noqa: D105
        for name in ("frames", "repeat"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} = {getattr(self, name)} is less than 1")
        if min(self.height, self.width) < MIN_SIDE:
            raise SpecError(f"a frame of {self.height}x{self.width} is too small; sides are at least {MIN_SIDE} pixels")
        if self.channels not in (1, 3):
            raise SpecError(f"channels = {self.channels}; choose 1 or 3")
        object.__setattr__(self, "methods", chosen_methods(self.methods or None))

    @property
    def n_samples(self) -> int:
        """Samples of the whole stack."""
        return self.frames * self.height * self.width * self.channels

    @property
    def threads(self) -> int:
        """Workers, whether named or not."""
        return self.workers or usable_cpus()

    @property
    def allowed_bytes(self) -> int:
        """Memory the benchmark may take, bytes."""
        return available_memory() // 2 if self.memory is None else self.memory

    def __str__(self) -> str:
        """Return the stack as a user writes it."""
        return f"{self.frames} frames of {self.height} x {self.width} x {self.channels}"


def needed_bytes(spec: BenchSpec) -> int:
    """Return the least memory a benchmark takes: the frames, a result, and the engine with the thinnest slabs."""
    engine = stack_bytes(
        FEW_ROWS, n_frames=spec.frames, height=spec.height, width=spec.width, channels=spec.channels,
        workers=spec.threads,
    )  # fmt: skip
    return 4 * spec.n_samples + 4 * OUTPUT_MAPS * spec.height * spec.width * spec.channels + engine


def fit_memory(spec: BenchSpec) -> tuple[BenchSpec, str]:
    """Return a specification that fits into its memory, with fewer rows if need be, and a note that says so.

    Rows are given up rather than frames: the time of a sample depends on the number of frames, hardly on their size.
    The memory allowed is fixed by this, so that frames being made do not change it.

    Raises
    ------
    PlanError
        Not even the smallest frames fit.
    """
    allowed = spec.allowed_bytes
    heights = range(MIN_SIDE, spec.height + 1)
    fitting = bisect.bisect_right(heights, allowed, key=lambda rows: needed_bytes(replace(spec, height=rows)))
    if fitting == 0:
        smallest = needed_bytes(replace(spec, height=MIN_SIDE))
        raise PlanError(
            f"{spec.frames} frames {spec.width} pixels wide need at least {memory_text(smallest)}, allowed are "
            f"{memory_text(allowed)}; use fewer --frames, a smaller --size or more --memory"
        )
    fitted = replace(spec, height=heights[fitting - 1], memory=allowed)
    if fitted.height == spec.height:
        return fitted, ""
    wanted, size = memory_text(needed_bytes(spec)), f"{fitted.height}x{fitted.width}"
    return fitted, f"{spec} need {wanted}, allowed are {memory_text(allowed)}: reduced to {size}"


def synthetic_stack(spec: BenchSpec, progress: Callback | None = None) -> np.ndarray:
    """Return frames of noisy sky with hits, whole ADU as a camera gives: ``(N, H, W) or (N, H, W, 3) float32``.

    Each frame has its own seeded generator: the same specification gives the same frames with any number of workers.
    """
    shape = (spec.height, spec.width) if spec.channels == 1 else (spec.height, spec.width, spec.channels)
    cube = np.empty((spec.frames, *shape), np.float32)
    done = iter(range(1, spec.frames + 1))

    def fill(i: int) -> None:
        rng = np.random.default_rng([spec.seed, i])
        samples = cube[i].reshape(-1)
        rng.standard_normal(out=samples, dtype=np.float32)
        samples *= np.float32(NOISE_ADU)
        samples += np.float32(SKY_ADU)
        hit = rng.integers(0, samples.size, round(HIT_SHARE * samples.size))
        samples[hit] += rng.uniform(*HIT_ADU, hit.size).astype(np.float32)
        np.rint(samples, out=samples)
        notify(progress, "make", next(done), spec.frames)

    parallel_map(fill, range(spec.frames), spec.threads)
    return cube


def write_stack(cube: np.ndarray, folder: Path, workers: int = 1) -> list[Path]:
    """Write frames as unsigned 16-bit FITS, ``s_00001.fit`` and so on, planes first.

    Parameters
    ----------
    cube : ndarray (N, H, W) or (N, H, W, 3) float32
        Whole ADU, 0 to 65535.
    folder : Path
        Exists.
    workers : int
        Threads.

    Raises
    ------
    OutputError
        There is not enough room in the folder, or it cannot be written.
    """
    from astropy.io import fits

    needed, free = cube.nbytes // 2, shutil.disk_usage(folder).free
    if needed + (needed >> 3) > free:
        raise OutputError(
            f"{folder}: the frames need {memory_text(needed)}, free are {memory_text(free)}; use a smaller --size or "
            "fewer --frames, or point TMPDIR to a larger disk"
        )

    def write(i: int) -> Path:
        path = folder / f"s_{i + 1:05d}.fit"
        frame = cube[i].astype(np.uint16)
        planes = np.moveaxis(frame, -1, 0) if frame.ndim == 3 else frame
        try:
            fits.PrimaryHDU(np.ascontiguousarray(planes)).writeto(path)
        except OSError as exc:
            raise OutputError(f"{path}: cannot be written ({exc}); point TMPDIR to another disk") from exc
        return path

    return parallel_map(write, range(len(cube)), workers)


@dataclass(frozen=True)
class Timing:
    """Repeats of one piece of work: wall seconds, and CPU seconds of all threads."""

    wall: list[float]
    cpu: list[float]

    @property
    def seconds(self) -> float:
        """Median of the wall times, seconds."""
        return statistics.median(self.wall)

    @property
    def cpu_seconds(self) -> float:
        """Median of the CPU times, seconds."""
        return statistics.median(self.cpu)


def timing(work: Callable[[], object], repeat: int) -> Timing:
    """Do the work once unseen, then at most ``repeat`` times by the clock."""
    work()
    wall: list[float] = []
    cpu: list[float] = []
    while len(wall) < repeat and sum(wall) < PATIENCE_S:
        start, start_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return Timing(wall, cpu)


@kernel
def sum_words(words: np.ndarray) -> np.uint64:
    """Sum of ``words (n,) uint64``, modulo 2**64."""
    total = np.uint64(0)
    for i in range(words.size):
        total += words[i]
    return total


def read_bandwidth(samples: np.ndarray, workers: int, repeat: int) -> float:
    """Return the bytes per second at which all workers together can read memory.

    Every byte is read and added, eight at a time as an integer: sums of integers may be reordered, so that the compiler
    uses SIMD and the sum never waits for the arithmetic.

    Parameters
    ----------
    samples : ndarray, contiguous float32
        A larger array of its own is read instead where this one might lie in the processor's caches.
    """
    flat = samples.reshape(-1)
    if flat.nbytes < BANDWIDTH_BYTES:
        flat = np.ones(BANDWIDTH_BYTES // 4, np.float32)
    words = flat[: flat.size // 2 * 2].view(np.uint64)
    step = -(-words.size // workers)

    def read() -> None:
        parallel_map(lambda start: sum_words(words[start : start + step]), range(0, words.size, step), workers)

    return float(words.nbytes / timing(read, repeat).seconds)


@dataclass(frozen=True)
class MethodFigures:
    """What one method took: combining alone, the engine on arrays, the engine on files (None: not asked for)."""

    method: str
    combine: Timing
    stack: Timing
    files: Timing | None = None


@dataclass(frozen=True)
class BenchResult:
    """Figures of one run; ``bandwidth`` bytes per second, ``reading`` the files alone (None: not asked for)."""

    spec: BenchSpec
    bandwidth: float
    reading: Timing | None
    figures: list[MethodFigures]
    load_before: float
    notes: list[str] = field(default_factory=list)

    def samples_per_second(self, of: MethodFigures) -> float:
        """Return how many samples are combined in a second."""
        return self.spec.n_samples / of.combine.seconds

    def cpu_ns(self, of: MethodFigures) -> float:
        """Return the CPU time of a sample that is combined, nanoseconds."""
        return 1e9 * of.combine.cpu_seconds / self.spec.n_samples

    def bandwidth_share(self, of: MethodFigures) -> float:
        """Return the part of the read bandwidth at which samples are combined."""
        return 4 * self.samples_per_second(of) / self.bandwidth

    def limit(self, of: MethodFigures) -> str:
        """Say what limits a method: "reading", "memory" or "compute", by the rule at the top of this room."""
        if self.reading is not None and of.files is not None and self.reading.seconds >= 0.5 * of.files.seconds:
            return "reading"
        return "memory" if self.bandwidth_share(of) >= MEMORY_SHARE else "compute"

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        rows = [
            {
                **asdict(of),
                "seconds": of.combine.seconds,
                "stack_seconds": of.stack.seconds,
                "files_seconds": None if of.files is None else of.files.seconds,
                "samples_per_second": self.samples_per_second(of),
                "cpu_ns_per_sample": self.cpu_ns(of),
                "bandwidth_share": self.bandwidth_share(of),
                "limit": self.limit(of),
            }
            for of in self.figures
        ]
        document = {
            "cpu": cpu_model(),
            "cores": usable_cpus(),
            "workers": self.spec.threads,
            "load_average_before": self.load_before,
            "spec": asdict(self.spec),
            "samples": self.spec.n_samples,
            "read_bandwidth_bytes_per_second": self.bandwidth,
            "reading_seconds": None if self.reading is None else self.reading.seconds,
            "methods": rows,
            "verdict": verdict(self),
            "notes": self.notes,
            "versions": doctor.versions(),
        }
        return dict(summary.json_ready(document))


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def load_average() -> float:
    """Return the load average of the last minute; 0 where the system keeps none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def run_bench(spec: BenchSpec, progress: Callback | None = None) -> BenchResult:
    """Measure memory, then every method.

    Parameters
    ----------
    spec : BenchSpec
        Fewer rows are taken where it does not fit into its memory; the result's notes say so.
    progress : callable or None
        Called as ``progress(stage, done, total)``, stages "make" and "bench".

    Raises
    ------
    PlanError
        Not even the smallest frames fit into the memory.
    OutputError
        The files cannot be written.
    """
    load = load_average()
    spec, note = fit_memory(spec)
    notes = [note] if note else []
    if 4 * spec.n_samples < BANDWIDTH_BYTES:
        notes.append(f"{spec} may lie in the processor's caches: the figures hold for stacks as small")
    if load >= BUSY_LOAD:
        notes.append(f"other work was running (load average {load:.1f}): an idle machine is faster")
    for text in notes:
        logger.warning(text)
    allowed = spec.allowed_bytes - 4 * spec.n_samples
    cube = synthetic_stack(spec, progress)
    bandwidth = read_bandwidth(cube, spec.threads, spec.repeat)
    if not spec.files:
        figures = _all_methods(spec, cube, [], allowed, progress)
        return BenchResult(spec, bandwidth, None, figures, load, notes)
    with tempfile.TemporaryDirectory(prefix="zemosaic-bench-") as folder:
        paths = write_stack(cube, Path(folder), spec.threads)
        reading = timing(lambda: read_all(paths, spec.threads), spec.repeat)
        figures = _all_methods(spec, cube, paths, allowed, progress)
    return BenchResult(spec, bandwidth, reading, figures, load, notes)


def read_all(paths: Sequence[Path], workers: int) -> None:
    """Open and read every frame once, whole, and keep nothing."""

    def read(path: Path) -> None:
        source = open_source(path)
        source.read_rows(0, source.height)

    parallel_map(read, paths, workers)


def _all_methods(
    spec: BenchSpec, cube: np.ndarray, paths: Sequence[Path], allowed_bytes: int, progress: Callback | None
) -> list[MethodFigures]:
    figures = []
    for done, name in enumerate(spec.methods):
        stack = methods()[name]
        job = array_job(cube, stack)
        figures.append(
            MethodFigures(
                name,
                timing(combiner(job, cube, spec.threads), spec.repeat),
                timing(_stacker(job, spec.threads, allowed_bytes), spec.repeat),
                timing(_file_stacker(paths, stack, spec.threads, allowed_bytes), spec.repeat) if paths else None,
            )
        )
        notify(progress, "bench", done + 1, len(spec.methods))
    return figures


def array_job(cube: np.ndarray, stack: StackSpec) -> Job:
    """Return the job of stacking frames that lie in memory, registered already."""
    return make_job([Frame(open_source({"data": frame, "name": f"frame {i}"})) for i, frame in enumerate(cube)], stack)


def combiner(job: Job, cube: np.ndarray, workers: int) -> Callable[[], np.ndarray]:
    """Return the engine's step from samples to image, for a whole stack that lies in memory as one slab.

    Parameters
    ----------
    job : Job
        From :func:`array_job` of the same frames; without normalisation, so that they are ready to use.
    cube : ndarray (N, H, W) or (N, H, W, 3) float32, contiguous
    workers : int
        Threads.

    Returns
    -------
    callable
        Does the step and returns the image, ``(H, W)`` or ``(H, W, 3) float32``, which the next call overwrites.
    """
    slab = SampleSlab(job, job.shape[0], cube)
    plan = slab_plan(job, Resources(workers, memory=1 << 60))
    arguments, result = job.kernel_arguments(), empty_result(job, plan.rows_per_slab)

    def combine() -> np.ndarray:
        combine_slab(job, arguments, slab, result, workers)
        return result.image

    return combine


def _stacker(job: Job, workers: int, allowed_bytes: int) -> Callable[[], object]:
    return lambda: stack_on_cpu(job, Resources(workers, memory=allowed_bytes))


def _file_stacker(paths: Sequence[Path], stack: StackSpec, workers: int, allowed_bytes: int) -> Callable[[], object]:
    def work() -> object:
        job = make_job([Frame(open_source(path)) for path in paths], stack)
        return stack_on_cpu(job, Resources(workers, memory=allowed_bytes))

    return work


def verdict(result: BenchResult) -> str:
    """Say in one sentence what limits this machine."""
    limits = {of.method: result.limit(of) for of in result.figures}
    kinds = [kind for kind in LIMITS if kind in limits.values()]
    parts = []
    for kind in kinds:
        names = [method for method, limit in limits.items() if limit == kind]
        parts.append(f"{kind} for {', '.join(names) if len(kinds) > 1 else 'every method timed'}")
    slowest = min(result.figures, key=result.bandwidth_share)
    ratio = 1.0 / result.bandwidth_share(slowest)
    if "compute" in kinds:
        why = f"memory could deliver samples {ratio:.1f} times as fast as {slowest.method} combines them"
    elif kinds == ["reading"]:
        why = "reading and decoding the files takes at least half of the time"
    else:
        why = "more cores would help little"
    return f"What limits this machine: {'; '.join(parts)} ({why})."


def print_bench(console: Console, result: BenchResult) -> None:
    """Print the figures as a table, with what limits each method, and one sentence on the machine."""
    spec = result.spec
    head = ["", "combine\ns", "mega-\nsamples/s", "CPU ns\n/sample", "% of\nread", "stack\ns"]
    head += ["files\ns", "limit"] if spec.files else ["limit"]
    rows = []
    for of in result.figures:
        rows.append(
            [
                of.method,
                f"{of.combine.seconds:.3f}",
                f"{result.samples_per_second(of) / 1e6:.0f}",
                f"{result.cpu_ns(of):.2f}",
                f"{100 * result.bandwidth_share(of):.0f}",
                f"{of.stack.seconds:.3f}",
                *([f"{of.files.seconds:.3f}"] if of.files is not None else []),
                result.limit(of),
            ]
        )
    facts = [
        ("stack", f"{spec}, {memory_text(4 * spec.n_samples)} as float32"),
        ("machine", f"{cpu_model()}, {spec.threads} worker(s) on {usable_cpus()} core(s)"),
        ("memory", f"{result.bandwidth / 1e9:.1f} GB/s read by all workers together"),
    ]
    if result.reading is not None:
        read = 2 * spec.n_samples / result.reading.seconds / 1e9
        facts.append(("files", f"{result.reading.seconds:.3f} s to read alone, {read:.2f} GB/s of 16-bit FITS"))
    facts += [("note" if k == 0 else "", note) for k, note in enumerate(result.notes)]
    summary.print_facts(console, facts)
    summary.print_columns(console, head, rows)
    console.print("combine: samples that lie ready in memory, % of the read bandwidth", soft_wrap=True)
    console.print(f"stack: the whole engine, from arrays{' and from files' if spec.files else ''}", soft_wrap=True)
    console.print(verdict(result), soft_wrap=True)
