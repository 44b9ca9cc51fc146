"""What the headers of a group say of rows and colours, checked against its pixels before frames are compared.

Frames whose rows were stored in the other order are read the other way round. A mosaic that no header names is known by
the four places of its 2x2 cells, as is a frame that claims to be one and is not: a few frames of a run are looked at.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zemosaic_phase3.detection.mosaic_cells import COLUMNS, ROWS, UNCLEAR, Verdict, judge_cells, measure_cells
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.flipped_frame import OTHER_ORDER, flip

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import FrameSource
    from zemosaic_phase3.pipeline.group import Group

logger = logging.getLogger("ZeMosaicWorker")

LOOKED_AT: Final = 3  # frames whose pixels are compared


def check_rows_and_colours(group: Group, bayer: str) -> None:
    """Make rows and colours of opened frames agree, and note in the group what was done or should be.

    Parameters
    ----------
    group : Group
        Opened; its sources may be replaced.
    bayer : str
        What the user asked for; other than "auto" it is not questioned.
    """
    notes = align_rows(group)
    if bayer == "auto":
        notes += settle_mosaic(group)
    for note in notes:
        logger.warning("%s", note)
    group.notes += notes


def align_rows(group: Group) -> list[str]:
    """Read frames from the bottom up where their ROWORDER is not that of the reference, or of most; return notes."""
    orders = {i: group.source(i).row_order for i in group.usable}
    known = Counter(order for order in orders.values() if order)
    if len(known) < 2:
        return []
    order = orders.get(group.reference, "") or known.most_common(1)[0][0]
    turned = [i for i, found in orders.items() if found == OTHER_ORDER[order]]
    for i in turned:
        group.sources[i] = flip(group.source(i))
    first = Path(group.rows[turned[0]].name).name
    return [
        f"the rows of {len(turned)} of {len(orders)} frames, such as {first}, are stored in the other order "
        f"(ROWORDER {OTHER_ORDER[order]} beside {order}): they are read the other way round"
    ]


def settle_mosaic(group: Group) -> list[str]:
    """Compare the colours that headers claim with the pixels; return notes.

    Frames without a pattern among frames of the same size with one get that pattern, if their pixels show a mosaic. A
    group that claims a mosaic and shows none is grey; one that shows a mosaic and names none stays grey, with a note.
    """
    size = _common_size(group)
    plain = [i for i in group.usable if (s := group.source(i)).channels == 1 and (s.height, s.width) == size]
    mosaics = [i for i in group.usable if (s := group.source(i)).cfa is not None and (s.height, s.width) == size]
    if mosaics:
        return _claimed(group, mosaics, plain)
    return _unnamed(group, plain) if plain else []


def _common_size(group: Group) -> tuple[int, int]:
    """Return height and width of the reference, or of most frames."""
    if group.reference in group.usable:
        source = group.source(group.reference)
        return source.height, source.width
    sizes = Counter((source.height, source.width) for i in group.usable if (source := group.source(i)))
    return sizes.most_common(1)[0][0] if sizes else (0, 0)


def _claimed(group: Group, mosaics: list[int], plain: list[int]) -> list[str]:
    """Frames that claim a mosaic, and others of their size that do not."""
    patterns = Counter(str(group.source(i).cfa) for i in mosaics)
    pattern = patterns.most_common(1)[0][0]
    look = look_at(group, mosaics)
    if look.kind == "even":
        for i in mosaics:
            group.sources[i] = _coloured(group.source(i), None)
        return [
            f"the headers claim a colour mosaic ({pattern}), but the four places of its 2x2 cells show the same sky, "
            "noise and starlight: binned or debayered before, so stacked as grey; "
            f"--bayer {pattern} demosaics them all the same"
        ]
    if not plain:
        return []
    look = look_at(group, plain)
    first = Path(group.rows[plain[0]].name).name
    if look.kind == "mosaic" and pattern in look.patterns:
        for i in plain:
            group.sources[i] = _coloured(group.source(i), pattern)
        return [
            f"{len(plain)} of {len(plain) + len(mosaics)} frames, such as {first}, name no colour mosaic but show one: "
            f"{pattern} as the others"
        ]
    return []


def _unnamed(group: Group, plain: list[int]) -> list[str]:
    """Frames none of which claims a mosaic."""
    look = look_at(group, plain)
    if look.kind != "mosaic":
        return []
    choices = " or ".join(f"--bayer {pattern}" for pattern in look.patterns)
    return [
        f"THE FRAMES LOOK LIKE A COLOUR MOSAIC that no header names (the places of their 2x2 cells differ by "
        f"{look.contrast:.1f} times the noise), and are stacked as grey; for colour stack again with {choices} "
        "(the pixels cannot tell which: with the wrong one red and blue change places), or with --bayer none if grey "
        "is right"
    ]


def look_at(group: Group, frames: list[int]) -> Verdict:
    """Compare the 2x2 cells of the first, the middle and the last of some frames."""
    chosen = sorted({frames[0], frames[len(frames) // 2], frames[-1]})[:LOOKED_AT]
    measured = []
    for i in chosen:
        source = group.source(i)
        first = max(0, source.height // 2 - ROWS // 2) // 2 * 2
        left = max(0, source.width // 2 - COLUMNS // 2) // 2 * 2
        try:
            pixels = source.read_rows(first, min(first + ROWS, source.height))
        except (FrameError, OSError) as error:  # scanning it will say so
            logger.debug("%s: not looked at: %s", source.name, error)
            continue
        cells = measure_cells(pixels[:, left : left + COLUMNS])
        if cells is None:
            return UNCLEAR
        measured.append(cells)
    return judge_cells(measured)


def _coloured(source: FrameSource, cfa: str | None) -> FrameSource:
    """Return a frame that is taken for a mosaic of a pattern, or for grey."""
    source = copy.copy(source)
    source.cfa = cfa
    source.channels = 1 if cfa is None else 3
    return source
