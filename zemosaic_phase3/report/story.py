"""What the page tells of a tile, gathered from the tile in memory or from its file: both tell the same."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.fits_header import without_warnings
from zemosaic_phase3.pipeline.outputs import frames_columns
from zemosaic_phase3.pipeline.run_facts import report_from
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.pipeline.tile_facts import TileFacts, facts_from
from zemosaic_phase3.records import TileReport

if TYPE_CHECKING:
    from astropy.io.fits import HDUList, Header
    from astropy.wcs import WCS

MAPS: Final = ("COVERAGE", "WEIGHT", "REJ_LOW", "REJ_HIGH")
METHOD_CARDS: Final = {
    "ZMT_NORM": "normalize", "ZMT_WGHT": "weight", "ZMT_REJ": "reject", "ZMT_KAPLO": "kappa_low",
    "ZMT_KAPHI": "kappa_high", "ZMT_COMB": "combine", "ZMT_INTP": "interpolation", "ZMT_SPAR": "spare_stars",
}  # fmt: skip
"""Cards that say what was done, which may be less than what was asked for, and the names of the options."""


@dataclass(frozen=True)
class Story:
    """A tile and all that is known of how it was made.

    ``image`` float32 (H, W) or (H, W, 3), ADU, NaN = invalid; ``maps`` by name, of the image's size, empty where they
    were not written; ``frames``: columns of the table FRAMES by name, (N,) or (N, C), None where there is none.
    """

    name: str
    image: np.ndarray
    maps: Mapping[str, np.ndarray]
    header: Header
    wcs: WCS | None
    report: TileReport
    frames: Mapping[str, np.ndarray] | None

    @property
    def facts(self) -> TileFacts:
        """What an observer asks first."""
        return facts_from(self.header, self.wcs, self.image.shape, self.report)

    @property
    def is_bottom_up(self) -> bool:
        """Whether the first row of the image is the lowest of the picture.

        As ROWORDER says; else so that a WCS shows the sky as it is and not in a mirror; else the first row is the top,
        as cameras store.
        """
        return shown_bottom_up(self.header, self.wcs)

    @property
    def methods(self) -> dict[str, Any]:
        """What was done, by the names of the options: what was asked for, and over it what the header says."""
        asked = {name: value for name, value in self.report.spec.items() if not isinstance(value, Mapping)}
        done = {name: self.header[key] for key, name in METHOD_CARDS.items() if key in self.header}
        return {**asked, **done}


def shown_bottom_up(header: Header, wcs: WCS | None) -> bool:
    """See :attr:`Story.is_bottom_up`."""
    told = str(header.get("ROWORDER", "")).strip().upper()
    if told in ("TOP-DOWN", "BOTTOM-UP"):
        return told == "BOTTOM-UP"
    return wcs is not None and bool(np.linalg.det(wcs.pixel_scale_matrix) < 0)


def story_of(tile: Tile, name: str) -> Story:
    """Tell of a tile in memory.

    Parameters
    ----------
    tile : Tile
    name : str
        Of its file, or of what it is to be called.
    """
    columns = {key: np.asarray(values) for key, values in frames_columns(tile.rows).items()}
    return Story(name, tile.image, tile.maps, tile.header, tile.wcs, tile.report, columns)


def read_story(path: str | os.PathLike[str]) -> Story:
    """Tell of a tile in a file: of this version, of an earlier one, or a master tile of ZeMosaic made here.

    Raises
    ------
    FrameError
        It cannot be read, or is no tile of this program.
    """
    from astropy.io import fits

    name = os.fspath(path)
    try:
        with without_warnings(Warning), fits.open(path, memmap=False) as hdus:
            header = hdus[0].header
            if "ZMT_REJ" not in header or hdus[0].data is None:
                raise FrameError(name, "is no tile that this program made (it has no card ZMT_REJ)")
            image = _channels_last(hdus[0].data).astype(np.float32)
            maps = {hdu.name: _channels_last(hdu.data) for hdu in hdus[1:] if hdu.name in MAPS}
            frames = _columns(hdus, "FRAMES")
            run = _columns(hdus, "RUN")
            wcs = _wcs(header)
    except FrameError:
        raise
    except FileNotFoundError as exc:
        raise FrameError(name, "no such file; name a stack that this program wrote") from exc
    except Exception as exc:  # noqa: BLE001 - astropy refuses damaged files in many ways
        raise FrameError(name, f"cannot be read ({' '.join(str(exc).split())})") from exc
    left_out: list[tuple[str, str]] = []
    if frames is not None:
        pairs = zip(frames["NAME"], frames["REASON"], frames["USED"], strict=True)
        left_out = [(str(one), str(why)) for one, why, used in pairs if not used]
    if run is None:
        report = _report_of_header(header, len(left_out), frames)
    else:
        report = report_from(map(str, run["KEY"]), map(str, run["VALUE"]))
    report.dropped = left_out
    return Story(Path(name).name, image, maps, header, wcs, report, frames)


def _channels_last(data: np.ndarray) -> np.ndarray:
    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    return np.moveaxis(native, 0, -1) if native.ndim == 3 else native


def _columns(hdus: HDUList, name: str) -> dict[str, np.ndarray] | None:
    """Return the columns of a table of the file; texts as str."""
    if name not in hdus:
        return None
    data = hdus[name].data
    return {column: np.array(data[column]) for column in data.names}


def _wcs(header: Header) -> WCS | None:
    from astropy.wcs import WCS as FitsWCS

    try:
        found = FitsWCS(header, naxis=2)
    except Exception:  # noqa: BLE001 - wcslib fails in many ways, and a tile without a WCS is one
        return None
    return found if found.has_celestial else None


def _report_of_header(header: Header, left_out: int, frames: Mapping[str, np.ndarray] | None) -> TileReport:
    """Return what a header alone tells of a run."""
    n_used = int(header.get("NCOMBINE", 0))
    noise = [header.get(f"ZMT_NOI{name}", math.nan) for name in "RGB" if f"ZMT_NOI{name}" in header]
    noise = noise or [header["ZMT_NOIL"]] if "ZMT_NOIL" in header or noise else []
    return TileReport(
        n_input=n_used + left_out if frames is not None else n_used,
        n_used=n_used,
        reference=str(header.get("ZMT_REF", "")),
        device=str(header.get("ZMT_DEV", "")),
        noise_after=[float(value) if isinstance(value, int | float) else math.nan for value in noise],
        calstat=str(header.get("CALSTAT", "")),
        defects=int(header.get("ZMT_COSM", 0)),
    )


def stem_of(name: str) -> str:
    """Return the name of a tile's file without its ending."""
    return Path(name).stem
