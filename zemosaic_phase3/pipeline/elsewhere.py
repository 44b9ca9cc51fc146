"""What others may do for a tile: measure its frames, stack its rows. Here is what they are asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from zemosaic_phase3.spec import RegisterSpec

if TYPE_CHECKING:
    from zemosaic_phase3.engine.job import Job, StackResult
    from zemosaic_phase3.io.frame import FrameSource
    from zemosaic_phase3.pipeline.scan import Scan


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each frame, see :func:`pipeline.scan.scan_frame`."""

    spec: RegisterSpec
    find_stars: bool
    measure: bool


class Elsewhere(Protocol):
    """Others who do a part of a tile's work; what they make has the bits that it would have here."""

    def measure(self, sources: Sequence[FrameSource], wanted: Wanted) -> Iterator[tuple[int, Scan]]:
        """Have frames measured; yields positions and measurements as they come, without those that nobody measured."""

    def stack(self, job: Job) -> StackResult | None:
        """Have a job stacked; the result has its device. None: nobody can."""
