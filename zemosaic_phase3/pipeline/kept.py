"""What a run keeps for the next one, and what it found: the journal, opened for the time of a run."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.pipeline.journal import CACHE_NAME, SUFFIX, Journal, JournalError
from zemosaic_phase3.pipeline.kept_frames import KeptFrames
from zemosaic_phase3.pipeline.kept_rows import KeptRows
from zemosaic_phase3.records import Resumed, TileReport

logger = logging.getLogger("ZeMosaicWorker")


@dataclass
class Kept:
    """The journal of a run and its two readers; all None where there is none."""

    journal: Journal | None = None
    frames: KeptFrames | None = None
    rows: KeptRows | None = None
    notes: list[str] = field(default_factory=list)

    def tell(self, report: TileReport) -> None:
        """Note in a report what came from the journal and what was wrong with it; the stack is written."""
        report.warnings += self.notes
        if self.journal is None or self.frames is None or self.rows is None:
            return
        self.rows.forget()
        self.journal.flush()
        if self.journal.fault:
            report.warnings.append(f"nothing more is kept for a next run: {self.journal.fault}")
        known = self.frames.n_measured, self.frames.n_registered, self.rows.n_restored
        is_of_use = any(known) or not self.journal.fault
        report.resumed = Resumed(str(self.journal.path) if is_of_use else "", *known)


def journal_path(output: str | os.PathLike[str] | None, cache: str | os.PathLike[str] | None) -> Path | None:
    """Return where the journal of a run lies: in a folder that was named, else beside the output; None: nowhere.

    Raises
    ------
    OutputError
        The folder that was named does not exist, or is a file.
    """
    if cache is not None:
        folder = Path(cache)
        if not folder.is_dir():
            raise OutputError(f"{folder}: is no folder for a journal; create it first, or leave --cache out")
        return folder / CACHE_NAME
    return None if output is None else Path(f"{os.fspath(output)}{SUFFIX}")


@contextlib.contextmanager
def kept_for(
    output: str | os.PathLike[str] | None, cache: str | os.PathLike[str] | None, *, resume: bool, fresh: bool
) -> Iterator[Kept]:
    """Open the journal of a run; without one where none can be had, which is noted."""
    path = journal_path(output, cache) if resume or fresh else None
    if path is None:
        yield Kept()
        return
    try:
        journal = Journal.opened(path, fresh=fresh)
    except JournalError as exc:
        logger.warning("nothing is kept for a next run: %s", exc)
        yield Kept(notes=[f"nothing is kept for a next run: {exc}"])
        return
    rows = KeptRows(journal)
    notes = []
    if others := journal.of_other_versions():
        notes.append(
            f"the journal {path} has {others} records of other versions, which are not used; --fresh removes them"
        )
    try:
        yield Kept(journal, KeptFrames(journal), rows, notes)
    finally:
        rows.close()
        journal.close()
