"""Defect maps from files: a FITS mask, or a list of points, columns and rows as Siril and PixInsight write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np

from zemosaic_phase3.calibrate.cosmetic import DefectMap
from zemosaic_phase3.errors import FrameError, SpecError
from zemosaic_phase3.io.inputs import FRAME_SUFFIXES
from zemosaic_phase3.io.open_frame import open_source

LONGEST_LIST: Final = 64 << 20  # bytes
_POINT: Final = re.compile(r"(?:p|point)\s+(\d+)\s+(\d+)(?:\s+[hc])?$")
_COLUMN: Final = re.compile(r"(?:c|col|column)\s+(\d+)(?:\s+\d+)?(?:\s+[hc])?$")
_ROW: Final = re.compile(r"(?:l|r|row|line)\s+(\d+)(?:\s+\d+)?(?:\s+[hc])?$")


def read_map(path: Path, shape: tuple[int, int], step: int) -> DefectMap:
    """Read a map of defects for frames of a size.

    Parameters
    ----------
    path : Path
        FITS or ``.npy`` image, not 0 (or NaN) where a photosite is defective; or a text with one defect a line:
        ``P x y``, ``C x`` and ``L y`` (Siril's .lst), ``Point x y``, ``Col x`` and ``Row y`` (PixInsight), counted from
        0 in the order in which the frames are stored. Lines that begin with # are comments.
    shape : tuple of int
        (H, W) of the frames.
    step : int
        Pixels between neighbours of one colour.

    Raises
    ------
    SpecError
        It cannot be read, has another size, or names places outside the frames.
    """
    if path.name.lower().removesuffix(".gz").endswith(FRAME_SUFFIXES):
        try:
            source = open_source(path, bayer="none")
            pixels = source.read_rows(0, source.height)
        except FrameError as exc:
            raise SpecError(f"the defect map cannot be read: {exc}") from exc
        if pixels.shape != shape:
            raise SpecError(
                f"the defect map {path} has {source.width} x {source.height} pixels, the frames {shape[1]} x {shape[0]}"
            )
        return DefectMap(np.isnan(pixels) | (pixels != 0), step)
    return _from_list(path, shape, step)


def _from_list(path: Path, shape: tuple[int, int], step: int) -> DefectMap:
    try:
        if path.stat().st_size > LONGEST_LIST:
            raise SpecError(f"the defect map {path} is too long for a list of defects; save a FITS mask")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError(f"the defect map {path} cannot be read ({exc}); give auto, off, a FITS mask or a list") from exc
    defect = np.zeros(shape, bool)
    columns, rows = set(), set()
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip().lower()
        if not text:
            continue
        point, column, row = _POINT.match(text), _COLUMN.match(text), _ROW.match(text)
        try:
            if point:
                defect[int(point[2]), int(point[1])] = True
            elif column:
                defect[:, int(column[1])] = True
                columns.add(int(column[1]))
            elif row:
                defect[int(row[1])] = True
                rows.add(int(row[1]))
            else:
                raise SpecError(f"{path}, line {number}: {line.strip()!r} is none of: P x y, C x, L y (counted from 0)")
        except IndexError as exc:
            raise SpecError(
                f"{path}, line {number}: {line.strip()!r} lies outside frames of {shape[1]} x {shape[0]} pixels"
            ) from exc
    return DefectMap(defect, step, len(columns), len(rows))
