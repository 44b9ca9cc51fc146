"""What is sent to a worker and what comes back: plain values, the same for every cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Final, Literal

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.atomic_write import written_whole
from zemosaic_phase3.io.origin import Identity
from zemosaic_phase3.io.remote import identity_at, is_remote
from zemosaic_phase3.io.value_bytes import digest
from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, SelectSpec, StackSpec

WORK_FOLDER: Final = ".tiles"  # in the folder of the tiles: records, beginnings, journals
State = Literal["made", "kept", "failed", "other code"]


@dataclass(frozen=True)
class TileOptions:
    """What all tiles of a run have in common; what changes a value of a tile is in ``key_text``."""

    stack: StackSpec = StackSpec()
    register: RegisterSpec = RegisterSpec()
    select: SelectSpec = SelectSpec()
    calibration: CalibrationSpec = CalibrationSpec()
    bayer: str = "auto"
    maps: bool = True
    device: str = "auto"
    require_gpu: bool = False
    self_check: bool = True
    min_frames: str | None = None
    resume: bool = True
    fresh: bool = False
    memory: int | None = None  # bytes of one worker; None: what its cluster or its machine allows
    threads: int | None = None  # of one tile; None: its share of the machine
    bands: int = 0  # row bands of each tile; 0: by the sizes

    @property
    def key_text(self) -> str:
        """Everything that a tile's pixels and maps depend on, beside its frames."""
        specs = [self.stack, self.register, self.select, self.calibration]
        return repr([*specs, self.bayer, self.maps, self.min_frames])


@dataclass(frozen=True)
class TileOrder:
    """One tile to be made, by anybody."""

    name: str
    frames: tuple[str, ...]
    folder: str  # absolute, of the tiles; all workers see it
    options: TileOptions
    code: str  # of who orders: other code may make other bits
    per_host: int = 1  # tiles that are made at once on one machine, at most
    bands: int = 1

    @property
    def output(self) -> Path:
        """The file of the tile."""
        return Path(self.folder) / f"{self.name}.fits"

    @property
    def record(self) -> Path:
        """The file that says who made it."""
        return Path(self.folder) / WORK_FOLDER / f"{self.name}.json"

    @property
    def begun(self) -> Path:
        """The file with a line for each beginning."""
        return Path(self.folder) / WORK_FOLDER / f"{self.name}.begun"

    def key(self) -> str:
        """Return what stands for the tile: its frames as they are now and its options; "": a frame is not there."""
        told = []
        for frame in self.frames:
            try:
                known: Identity = identity_at(_file_of(frame))
            except OSError:
                told.append(f"{frame} -")
            else:
                told.append(f"{frame} {known.size} {known.modified_ns}")
        return digest(self.options.key_text, *told)


def _file_of(frame: str) -> str:
    """Return the file of a frame that is one unit of it."""
    stem, bracket, unit = frame.rpartition("[")
    is_unit = bool(bracket) and unit.endswith("]") and unit[:-1].isdecimal()
    return stem if is_unit and (is_remote(frame) or not Path(frame).exists()) else frame


@dataclass(frozen=True)
class TileRecord:
    """What became of one tile, and who made it: an entry of the manifest, and a file beside the tile.

    Attributes
    ----------
    state : str
        "made", "kept" (it was there, made by the worker named), "failed", or "other code" (the worker refused).
    key : str
        Of :meth:`TileOrder.key`.
    worker, host, pid, device, device_reason
        Who made it on what.
    attempts : int
        Beginnings since the tile was last finished, this one included.
    seconds, cpu_seconds : float
        Of the last attempt; the latter of all its threads.
    size, sha256 : int, str
        Of the file.
    pixels : str
        Digest of its image and maps alone, the same for everybody.
    n_frames, n_used : int
    measured_before : int
        Frames that another tile, or an earlier run, had measured.
    read_bytes : int
        Read from files, or asked of an address, by the process meanwhile; 0: not known.
    peak_bytes : int
        Memory of the process at its peak.
    reason : str
        Of a failure.
    may_retry : bool
        The failure may be the machine's, not the frames'.
    """

    name: str
    state: State
    key: str = ""
    output: str = ""
    worker: str = ""
    host: str = ""
    pid: int = 0
    device: str = ""
    device_reason: str = ""
    attempts: int = 0
    began: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    size: int = 0
    sha256: str = ""
    pixels: str = ""
    n_frames: int = 0
    n_used: int = 0
    n_needed: int = 0
    bands: int = 1
    measured_before: int = 0
    read_bytes: int = 0
    peak_bytes: int = 0
    code: str = ""
    reason: str = ""
    may_retry: bool = False
    notes: tuple[str, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it as JSON, atomically.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        data = (json.dumps(asdict(self), indent=1) + "\n").encode()
        with written_whole(path, len(data), overwrite=True) as stream:
            stream.write(data)

    @classmethod
    def read(cls, path: Path) -> TileRecord | None:
        """Return what a file says; None: there is none, or it is no record."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {found.name for found in fields(cls)}
            values = {name: value for name, value in content.items() if name in known}
            return cls(**{**values, "notes": tuple(values.get("notes", ()))})
        except (OSError, ValueError, TypeError, AttributeError):
            return None


def prepare_folder(folder: Path) -> Path:
    """Make the folder of the tiles and that of their records; return it, absolute.

    Raises
    ------
    OutputError
        It cannot be made, or is a file.
    """
    whole = folder.absolute()
    try:
        (whole / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be a folder of tiles ({exc.strerror}); choose another one") from exc
    return whole
