"""The whole job on this machine, stage by stage: simulated raw subs from files to a tile, and what limits each."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3.app import summary
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.progress import Callback
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

if TYPE_CHECKING:
    from rich.console import Console

BUSY: Final = 0.75  # of the workers' cores, from which on a stage is limited by them
ALONE: Final = 1.3  # cores, up to which one thread does the work


@dataclass(frozen=True)
class StageFigures:
    """What a stage took: wall and CPU seconds, bytes read, and the workers it had."""

    stage: str
    seconds: float
    cpu_seconds: float
    bytes_read: float
    workers: int

    @property
    def cores(self) -> float:
        """Cores that were busy, on average."""
        return self.cpu_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def limit(self) -> str:
        """What the stage waits for: "cores" (all are busy), "one thread", "disk or card" (cores wait), or "in part"."""
        if self.cores >= BUSY * self.workers:
            return "cores"
        if self.cores < 0.5:
            return "disk or card"
        return "one thread" if self.cores <= ALONE else "in part"


def stages_of(report: TileReport, workers: int) -> list[StageFigures]:
    """Return the stages of a run in their order."""
    order = {stage: k for k, stage in enumerate(summary.STAGES)}
    names = sorted(report.seconds, key=lambda stage: order.get(stage, len(order)))
    return [
        StageFigures(
            name,
            report.seconds[name],
            report.cpu_seconds.get(name, 0.0),
            report.bytes_read.get(name, 0.0),
            workers,
        )
        for name in names
    ]


@dataclass(frozen=True)
class JobFigures:
    """The whole job of so many subs; ``device`` says where it stacked, and why."""

    subs: int
    height: int
    width: int
    device: str
    stages: list[StageFigures]

    @property
    def seconds(self) -> float:
        """Wall seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        rows = [{**asdict(stage), "cores": stage.cores, "limit": stage.limit} for stage in self.stages]
        return {**asdict(self), "seconds": self.seconds, "stages": rows}


def run_job(subs: int, shape: tuple[int, int], workers: int, progress: Callback | None = None) -> JobFigures:
    """Stack simulated raw subs from a temporary folder, twice, and return the figures of the second time.

    The first time compiles what is not compiled yet; the files are in the system's cache then.

    Parameters
    ----------
    subs : int
        Frames.
    shape : (height, width)
    workers : int
        Threads.
    progress : callable or None
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    OutputError
        The files cannot be written.
    """
    height, width = shape
    with tempfile.TemporaryDirectory(prefix="zemosaic-bench-") as folder:
        simulate(SimulationSpec(n_frames=subs, height=height, width=width), Path(folder), progress=progress)
        for _ in range(2):
            report = stack_files([folder], None, workers=workers, resume=False).report
    return JobFigures(subs, height, width, report.device, stages_of(report, workers))


def print_job(console: Console, job: JobFigures) -> None:
    """Print the stages as a table."""
    console.print(
        f"\nthe whole job: {job.subs} raw subs of {job.height}x{job.width} from files to a tile, on the "
        f"{job.device.upper()}, {job.seconds:.2f} s",
        soft_wrap=True,
    )
    head = ["", "s", "% of\nall", "ms\n/sub", "cores\nbusy", "MB\nread", "limit"]
    rows = [
        [
            stage.stage,
            f"{stage.seconds:.3f}",
            f"{100 * stage.seconds / max(job.seconds, 1e-9):.0f}",
            f"{1e3 * stage.seconds / job.subs:.1f}",
            f"{stage.cores:.1f}",
            f"{stage.bytes_read / 1e6:.0f}",
            stage.limit,
        ]
        for stage in job.stages
    ]
    summary.print_columns(console, head, rows)
