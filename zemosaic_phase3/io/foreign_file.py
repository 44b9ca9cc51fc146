"""Frames in files of other formats than FITS: what their headers say, told as FITS cards, and how pixels are decoded.

Pixels that lie uncompressed one after the other are read by rows like those of any file. Others are decoded by the
library of the format, and a decoded frame may be kept in one nameless file for the time of a run (:class:`Decoded`).
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.extras import install
from zemosaic_phase3.io import fits_header as headers
from zemosaic_phase3.io.codec import Codec
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.pixel_files import PixelFile, Place, file_errors
from zemosaic_phase3.io.wrapped_frame import WrappedSource

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from zemosaic_phase3.io.codec import RawLayout
    from zemosaic_phase3.io.frame import Size

logger = logging.getLogger("zemosaic.frames")

INSTALL: Final = install("formats")
TOP_DOWN: Final = "TOP-DOWN"
SPARE_BYTES: Final = 1 << 30  # of a disk that decoded frames leave alone


def library(module: str, name: str, what: str) -> ModuleType:
    """Import the library of a format.

    Raises
    ------
    FrameError
        It is not installed; names the command that does it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        missing = exc.name or module
        raise FrameError(name, f"is {what}, for which the package {missing} is needed; {INSTALL}") from exc


@contextlib.contextmanager
def decoding_errors(name: str, what: str) -> Iterator[None]:
    """Turn whatever the library of a format raises over a damaged file into one FrameError."""
    try:
        with file_errors(name):
            yield
    except (FrameError, MemoryError):
        raise
    except Exception as exc:  # libraries of formats fail in many ways over damaged files, and all mean the same here
        said = exc.args[0] if exc.args else ""  # LibRaw's is bytes
        said = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(exc)
        text = " ".join(said.split())[:200] or type(exc).__name__
        raise FrameError(name, f"{what} cannot be read ({text}); copy it again, or convert it to FITS") from exc


def cards_without_sky(cards: Mapping[str, Any]) -> dict[str, Any]:
    """Return cards without those that place pixels on the sky: rows of these formats lie the other way round.

    FITS counts rows from the bottom of the picture and these formats from its top, and programs do not agree on which
    of the two the cards of such a file mean. Frames register by their stars.
    """
    kept = {key: value for key, value in cards.items() if not headers.WCS_KEY.match(key)}
    return {**kept, "ROWORDER": TOP_DOWN}


class ForeignFile(PixelFile):
    """Pixels one after the other in a file that is no FITS; ``cards``: what its header says, as FITS would."""

    __slots__ = ("_cards",)

    def __init__(
        self, name: str, size: Size, codec: Codec, cfa: str | None, place: Place, cards: Mapping[str, Any]
    ) -> None:
        super().__init__(name, size, codec, cfa, place)
        self._cards = dict(cards)
        self.row_order = TOP_DOWN

    def card_values(self, *keys: str) -> list[Any]:
        """Return the values of a few cards."""
        if self._header is not None:
            return super().card_values(*keys)
        return [self._cards.get(key) for key in keys]

    def _file_cards(self, keys: Collection[str]) -> dict[str, Any]:
        return {key: self._cards[key] for key in keys if key in self._cards}

    def _file_header(self) -> Callable[[], Header]:
        cards = self._cards
        return lambda: headers.header_from_mapping(cards)


class DecodedFile(ForeignFile):
    """A file whose pixels its library decodes, the whole frame at once."""

    __slots__ = ("decoded",)

    def __init__(
        self, name: str, size: Size, codec: Codec, cfa: str | None, place: Place, cards: Mapping[str, Any]
    ) -> None:
        super().__init__(name, size, codec, cfa, place, cards)
        self.decoded: Decoded | None = None

    @property
    def raw_layout(self) -> RawLayout | None:
        """None: the stored bytes must be decoded first."""
        return None

    @property
    def is_encoded(self) -> bool:
        """True: the bytes of the file are no pixels."""
        return True

    @property
    def whole_bytes(self) -> int:
        """Bytes that decoding takes while it goes on: the frame as stored, and once more what it is made from."""
        planes = 1 if self.cfa else self.channels
        return 2 * self.height * self.width * planes * self._codec.stored.itemsize

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        kept = None if self.decoded is None else self.decoded.rows(self, y0, shape, self._codec.stored)
        if kept is None:
            with file_errors(self.name):
                self.require_unchanged()
                whole = self._whole()
                self.require_unchanged()
            if self.decoded is not None:
                self.decoded.keep(self, whole)
            kept = np.array(whole[y0:y1], order="C")
        else:
            self.require_unchanged()
        return self._codec.decode(kept.reshape(shape))

    @abc.abstractmethod
    def _whole(self) -> np.ndarray:
        """Decode the frame: (H, W) or (H, W, C), of the codec's stored type."""


class Decoded:
    """Decoded frames of a run, in one file without a name that vanishes with the process.

    A stack reads each frame several times; a camera raw takes half a second to decode. Where the disk has no room the
    frames are decoded each time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._end = 0
        self._kept: dict[int, tuple[DecodedFile, int]] = {}  # by id: the frame, so that it stays, and where it is
        self.is_full = False
        self.spare = SPARE_BYTES  # of the disk that stay free

    def rows(self, source: DecodedFile, y0: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """Return rows of a frame as they were decoded; None where it is not kept."""
        kept = self._kept.get(id(source))
        if kept is None or self._file is None:
            return None
        block = np.empty(shape, dtype)
        at = kept[1] + y0 * (block.nbytes // shape[0])
        target = block.reshape(-1).view(np.uint8).data
        with contextlib.suppress(OSError):
            return block if _read_at(self._file, self._lock, at, target) else None
        return None

    def keep(self, source: DecodedFile, whole: np.ndarray) -> None:
        """Keep a decoded frame, where there is room."""
        data = np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data
        with self._lock:
            if self.is_full or id(source) in self._kept:
                return
            try:
                if shutil.disk_usage(self._folder).free - len(data) < self.spare:
                    self.is_full = True
                    return
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - for the run
                self._file.seek(self._end)
                done = 0
                while done < len(data):
                    done += self._file.write(data[done:])
            except OSError as exc:
                logger.debug("decoded frames are no longer kept: %s", exc)
                self.is_full = True
                return
            self._kept[id(source)] = (source, self._end)
            self._end += len(data)

    def close(self) -> None:
        """Give the room on the disk back."""
        with self._lock:
            self._kept.clear()
            self.is_full = True
            if self._file is not None:
                self._file.close()


def _read_at(stream: BinaryIO, lock: threading.Lock, at: int, target: memoryview) -> bool:
    """Fill ``target`` from a place of a file; False where the file ends before."""
    done = 0
    if hasattr(os, "preadv"):
        while done < len(target) and (count := os.preadv(stream.fileno(), [target[done:]], at + done)):
            done += count
    else:  # Windows
        with lock:
            stream.seek(at)
            while done < len(target) and (count := stream.readinto(target[done:])):  # type: ignore[attr-defined]
                done += count
    return done == len(target)


def decoded_files(sources: Iterable[FrameSource | None]) -> list[DecodedFile]:
    """Return the frames among these, and inside of these, that are decoded whole."""
    found = []
    for source in sources:
        while isinstance(source, WrappedSource):
            source = source.inner  # noqa: PLW2901 - to the frame inside
        if isinstance(source, DecodedFile):
            found.append(source)
    return found


def whole_bytes(source: FrameSource) -> int:
    """Return what one thread takes beside the rows it asks for, bytes: a frame, where it is decoded whole."""
    return max([found.whole_bytes for found in decoded_files([source])], default=0)
