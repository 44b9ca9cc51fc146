"""The WCS of a tile: the mean of what the headers of its frames say, where three or more say something of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.records import SkySolution, TileReport, WcsMean
from zemosaic_phase3.registration.solutions import combined_wcs

if TYPE_CHECKING:
    from astropy.wcs import WCS


class Solutions(NamedTuple):
    """What the WCS of frames say of the reference's image, by name; ``own``: position of the reference."""

    names: list[str]
    found: list[SkySolution | None]
    own: int


def known_solutions(group: Group) -> Solutions:
    """Return what is known of the frames that are stacked."""
    usable = group.usable
    verdicts = [group.rows[i].registration for i in usable]
    return Solutions(
        [Path(group.rows[i].name).name for i in usable],
        [None if verdict is None else verdict.solution for verdict in verdicts],
        usable.index(group.reference),
    )


def wcs_of_tile(
    reference: WCS, solutions: Solutions | None, size: tuple[int, int], report: TileReport
) -> tuple[WCS, list[str]]:
    """Return the WCS of the reference's image, and notes; the report learns what it was made of.

    Parameters
    ----------
    reference : astropy.wcs.WCS
        Of the reference.
    solutions : Solutions or None
        None: the reference's own is wanted.
    size : tuple of int
        (H, W) of the reference's image, pixels.
    report : TileReport
    """
    found = None if solutions is None else combined_wcs(reference, solutions.found, solutions.own, size)
    report.wcs_mean = WcsMean()
    if found is None or solutions is None:
        return reference, []
    report.wcs_mean = WcsMean(found.n, found.spread, len(found.wrong))
    notes = []
    if found.wrong:
        named = ", ".join(solutions.names[k] for k in found.wrong[:3])
        more = f" and {len(found.wrong) - 3} more" if len(found.wrong) > 3 else ""
        does = "does" if len(found.wrong) == 1 else "do"
        whose = "the reference's own among them, " if solutions.own in found.wrong else ""
        notes.append(
            f"the WCS of {len(found.wrong)} {'frame' if does == 'does' else 'frames'} ({named}{more}) {does} not agree "
            f"with the others, {whose}and {'has' if does == 'does' else 'have'} no part in the tile's"
        )
    return found.wcs, notes
