"""Many stacks in time from one registration: what observers of variable stars and minor planets need.

All stacks of a series lie on one grid and have its WCS. The levels of each are those of its own reference, so that a
change of the air between two stacks is in both variable and comparison star, and cancels in their difference.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.errors import NoFramesError, OutputError, SpecError
from zemosaic_phase3.extras import install, missing
from zemosaic_phase3.io.atomic_write import written_whole
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.pipeline.input_list import is_own_tile
from zemosaic_phase3.pipeline.light_curve import Targets, curve_table
from zemosaic_phase3.pipeline.outputs import Wanted, check_output, check_room, write_tile
from zemosaic_phase3.pipeline.tile_facts import star_width

if TYPE_CHECKING:
    from zemosaic_phase3.pipeline.tile import Tile

OneStack = Callable[[Group, Mapping[int, int]], "Tile"]
"""Stacks a part of a group; the numbers are the positions of its frames in the whole."""

MOST_STACKS: Final = 9999
_LENGTH: Final = re.compile(r"(\d+(?:\.\d*)?)\s*(s|sec|min|m|h)?", re.IGNORECASE)
_SECONDS: Final = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
COLUMNS: Final = ("file", "frames", "date_beg", "date_avg", "mjd_avg", "date_end", "exposure_s", "fwhm_px")


@dataclass(frozen=True)
class SeriesSpec:
    """How frames are cut in time: so many together, or all within so many seconds; one of both is 0."""

    frames: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, text: str | int | SeriesSpec) -> SeriesSpec:
        """Return what "5min", "90s", "1h" or "50" (frames) means.

        Raises
        ------
        SpecError
            It means neither a time nor a number of frames.
        """
        if isinstance(text, SeriesSpec):
            return text
        found = _LENGTH.fullmatch(str(text).strip())
        number = 0.0 if found is None else float(found[1])
        unit = "" if found is None or found[2] is None else found[2].lower()
        if found is None or number <= 0 or (not unit and number != int(number)):
            raise SpecError(f"a series of {text!r} is neither a time nor a number of frames; write e.g. 5min or 50")
        return cls(seconds=number * _SECONDS[unit]) if unit else cls(frames=int(number))

    def cut(self, starts: Sequence[float]) -> list[list[int]]:
        """Cut moments, seconds, into consecutive sets; nan is in none.

        A time begins with the first frame that is in no set yet, so that a pause costs nothing.
        """
        order = sorted((i for i, at in enumerate(starts) if math.isfinite(at)), key=lambda i: (starts[i], i))
        sets: list[list[int]] = []
        for i in order:
            full = not sets or (
                len(sets[-1]) >= self.frames if self.frames else starts[i] - starts[sets[-1][0]] >= self.seconds
            )
            if full:
                sets.append([])
            sets[-1].append(i)
        return sets


def targets_of(
    series: SeriesSpec | str | int | None, targets: str | os.PathLike[str] | None, *, follows: bool = False
) -> Targets | None:
    """Return the positions whose light curve is asked for; None: none.

    Parameters
    ----------
    series : SeriesSpec, str or int, optional
        The series in whose stacks they are measured.
    targets : path, optional
        Their table.
    follows : bool
        The stack holds still for a moving target, and stars are trails in it.

    Raises
    ------
    SpecError
        There is no series; the table cannot be read; photutils is missing; or positions on the sky are to be measured
        where the sky moves.
    """
    if targets is None:
        return None
    if series is None:
        raise SpecError("targets are measured in the stacks of a series; give --series too, e.g. 5min")
    if missing("series"):
        raise SpecError(f"a light curve needs the package photutils; {install('series')}")
    found = Targets.read(Path(targets))
    if follows and found.on_sky:
        raise SpecError(
            f"{targets}: with --comet the sky moves through the stack, and positions in ra and dec are trails there; "
            "give x and y of the target in the stack, or measure stars in a series without --comet"
        )
    return found


class Series:
    """The stacks of a series, and the tables beside them.

    Parameters
    ----------
    spec : SeriesSpec
    output : Path
        Of the whole stack; those of the series are called ``OUT_s0001.fits`` and so on.
    targets : Targets or None
        Positions of which a light curve is measured.

    Raises
    ------
    OutputError
        Something is in the way of a file.
    """

    def __init__(
        self, spec: SeriesSpec, output: Path, targets: Targets | None, *, overwrite: bool, maps: bool = False
    ) -> None:
        self._spec, self._output, self._targets, self._overwrite = spec, output, targets, overwrite
        self._whole = Wanted(output, maps)
        for path in (self.table, *([] if targets is None else [self.curve])):
            check_output(path, overwrite=overwrite)
        earlier = self._earlier()
        if earlier and not overwrite:
            raise OutputError(f"{earlier[0]}: exists already; choose another name, or allow --overwrite")

    @property
    def table(self) -> Path:
        """The table of the stacks."""
        return self._output.with_name(f"{self._output.stem}_series.csv")

    @property
    def curve(self) -> Path:
        """The table of the light curve."""
        return self._output.with_name(f"{self._output.stem}_lightcurve.csv")

    def _earlier(self) -> list[Path]:
        named = re.compile(re.escape(self._output.stem) + r"_s\d{4}")
        return sorted(path for path in self._output.parent.iterdir() if named.fullmatch(path.stem))

    def _path(self, k: int) -> Path:
        return self._output.with_name(f"{self._output.stem}_s{k:04d}{self._output.suffix}")

    def _look_for_room(self, shape: tuple[int, ...], counts: Sequence[int]) -> None:
        """Refuse a series that would leave no room for the whole stack."""
        sizes = self._whole.sizes(shape, sum(counts))
        for k, n_frames in enumerate(counts, start=1):
            sizes |= Wanted(self._path(k)).sizes(shape, n_frames)
        check_room(sizes)

    def make(self, group: Group, one_stack: OneStack, scale: float = 1.0) -> list[str]:
        """Stack each part of a registered group, and write it; returns what is to be said.

        ``scale``: pixels of the stacks for one of the frames, by which stars are wider in them.

        Raises
        ------
        NoFramesError
            No frame tells when it was exposed, or there would be too many stacks.
        OutputError
            The disk has no room for the series and the whole stack.
        """
        usable = group.usable
        starts = [_seconds(group, i) for i in usable]
        sets = self._spec.cut(starts)
        if not sets:
            raise NoFramesError("a series needs times, and no frame tells when it was exposed (DATE-OBS)")
        if len(sets) > MOST_STACKS:
            raise NoFramesError(f"a series of {len(sets)} stacks is more than {MOST_STACKS}; take longer ones")
        stale = {path for path in self._earlier() if is_own_tile(path)}
        fwhm = scale * float(np.nanmedian([group.scan(i).fwhm for i in usable] or [math.nan]))
        rows, points = [], []
        for k, members in enumerate(sets, start=1):
            chosen = [usable[m] for m in members]
            tile = one_stack(_part(group, chosen), dict(enumerate(chosen)))
            if k == 1:
                self._look_for_room(tile.image.shape, [len(found) for found in sets])
            path = self._path(k)
            tile.report.fwhm_px = star_width(tile.image)
            write_tile(tile, path, overwrite=self._overwrite)
            stale.discard(path)
            rows.append(_row(path, tile))
            if self._targets is not None:
                points += self._targets.measure(tile, path.name, fwhm)
        for path in stale:  # of an earlier, longer series
            path.unlink(missing_ok=True)
        write_table(self.table, COLUMNS, rows, overwrite=self._overwrite)
        notes = [
            f"series: {len(sets)} stacks, {self._output.stem}_s0001 to _s{len(sets):04d}, times in {self.table.name}"
        ]
        lost = len(usable) - sum(map(len, sets))
        if lost:
            notes.append(f"series: {lost} frames do not tell when they were exposed, and are in none of its stacks")
        if self._targets is not None:
            columns, lines = curve_table(points)
            write_table(self.curve, columns, lines, overwrite=self._overwrite)
            notes.append(f"light curve: {len(self._targets.names)} targets in {self.curve.name}")
        return notes


def _seconds(group: Group, i: int) -> float:
    start = group.scan(i).exposure.start
    return math.nan if start is None else start.timestamp()


def _part(group: Group, chosen: Sequence[int]) -> Group:
    """Return some frames of a group as a group; its reference, which gives levels, is that of the whole if it is there.

    Else it is the frame with the most stars.
    """
    rows = [replace(group.rows[i]) for i in chosen]
    if group.reference in chosen:
        best = list(chosen).index(group.reference)
        return Group(rows, [group.sources[i] for i in chosen], reference=best)
    best = max(range(len(chosen)), key=lambda k: (group.scan(chosen[k]).n_stars, -k))
    return Group(rows, [group.sources[i] for i in chosen], reference=best)


def _row(path: Path, tile: Tile) -> list[str]:
    header = tile.header
    return [
        path.name, str(tile.report.n_used), str(header.get("DATE-BEG", "")), str(header.get("DATE-AVG", "")),
        str(header.get("MJD-AVG", "")), str(header.get("DATE-END", "")), str(header.get("LIVETIME", "")),
        f"{tile.report.fwhm_px:.3f}" if math.isfinite(tile.report.fwhm_px) else "",
    ]  # fmt: skip


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]], *, overwrite: bool) -> None:
    """Write a table with commas, atomically."""
    lines: list[str] = []

    class Lines:
        def write(self, text: str) -> int:
            lines.append(text)
            return len(text)

    writer = csv.writer(Lines(), lineterminator=os.linesep)
    writer.writerows([columns, *rows])
    data = "".join(lines).encode(errors="backslashreplace")
    with written_whole(path, len(data), overwrite=overwrite) as stream:
        stream.write(data)
