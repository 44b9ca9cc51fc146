"""Rows of a stack that were finished before: by a run that was stopped, of the same frames with the same options.

Slabs never change a value, so rows may come from any run, device or slab height.
"""

from __future__ import annotations

from typing import Protocol

from zemosaic_phase3.engine.job import Job, StackResult


class FinishedRows(Protocol):
    """Where finished rows are kept; the engines call it from one thread. The real one is ``pipeline.kept_rows``."""

    def restore(self, job: Job, result: StackResult) -> list[slice]:
        """Fill a new result with the rows that are finished, counts included; return them, disjoint and ascending."""

    def is_due(self) -> bool:
        """Return whether finished rows should be handed over now."""

    def keep(self, rows: slice, result: StackResult) -> None:
        """Take rows that are finished, the next ones each time, and all counts so far, ``restore``'s included."""
