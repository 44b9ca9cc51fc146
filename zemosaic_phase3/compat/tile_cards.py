"""Header cards of a master tile that later phases of existing runs read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3.compat.center_out import Correction
from zemosaic_phase3.compat.tile_request import TileRequest
from zemosaic_phase3.finish.crop import Box
from zemosaic_phase3.pipeline.group import Group
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.pipeline.tile_header import wcs_cards

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS


def complete_header(
    request: TileRequest, group: Group, tile: Tile, wcs: WCS | None, box: Box | None, metrics: Mapping[str, Any]
) -> Header:
    """Return the tile's header with the cards that later phases read."""
    header = tile.header.copy()
    if wcs is not None and box is not None:
        header.extend(wcs_cards(wcs), update=True)
    registered = sum(1 for row in group.rows if row.registration is not None and row.registration.ok)
    header["ZMT_TYPE"] = ("Master Tile", "")
    header["ZMT_ID"] = (request.tile_id, "tile")
    header["ZMT_NRAW"] = (len(request.entries), "frames in the group")
    header["HIERARCH ZMT_NALGN"] = (registered, "frames registered")
    header["HIERARCH MT_NFRAMES"] = (tile.report.n_used, "frames stacked")
    _put_finite(header, asdict(tile.equalization), "RGB equalisation", _GAIN_CARDS)
    header.add_history(f"RGB equalisation {'applied' if tile.equalization.applied else 'not applied'}")
    low, high = request.stack.kappas  # also where nothing is rejected by them: later phases read the cards of any tile
    header["HIERARCH ZMT_KAPLO"] = (low, "rejection limit, sigma")
    header["HIERARCH ZMT_KAPHI"] = (high, "rejection limit, sigma")
    header["ZMT_QCRO"] = (box is not None, "quality crop applied")
    if box is not None:
        header["ZMT_QBOX"] = (",".join(str(v) for v in box), "y0,x0,y1,x1")
    _put_finite(header, metrics, "quality gate, 0 = good", _GATE_CARDS)
    if metrics:
        header["ZMT_QBD"] = (int(not metrics["accepted"]), "1: rejected by the quality gate")
    return header


def center_out_cards(request: TileRequest, correction: Correction | None) -> Header:
    """Gain and offset to the anchor; the anchor's number also for a tile that could not be matched to it."""
    from astropy.io.fits import Header

    found = correction or Correction(1.0, 0.0, "unmatched")
    anchor = -1 if correction is None or request.context is None else int(request.context.anchor_original_id)
    cards = Header()
    cards["ZMT_P3CO"] = (int(found.is_applied), "1: centre-out normalisation applied")
    cards["HIERARCH ZMT_AGAIN"] = (found.gain, "gain to the anchor")
    cards["ZMT_AOFF"] = (found.offset, "offset to the anchor, adu")
    cards["ZMT_ANCH"] = (anchor, "anchor tile, -1: none")
    return cards


_GAIN_CARDS: Final = {"RGBGAINR": "gain_r", "RGBGAING": "gain_g", "RGBGAINB": "gain_b", "RGBEQMED": "target_median"}
_GATE_CARDS: Final = {"ZMT_QS": "score", "ZMT_NBR": "NBR", "ZMT_EOC": "EOC", "ZMT_TRL": "TRL", "ZMT_CER": "CER"}


def _put_finite(header: Header, values: Mapping[str, Any], comment: str, cards: Mapping[str, str]) -> None:
    """Write the numbers there are; FITS cards hold no NaN."""
    for key, name in cards.items():
        number = float(values.get(name, math.nan))
        if math.isfinite(number):
            header[key] = (number, comment)
