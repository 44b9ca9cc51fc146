"""One tile on one worker: what a cluster calls, with a value and for a value.

Nothing but the folder of the tiles is shared with other workers. A tile appears under its name in one step, and its
record after it, so that a worker may die at any moment; two that make the same tile make the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from zemosaic_phase3.cluster.order import WORK_FOLDER, TileOrder, TileRecord
from zemosaic_phase3.cluster.share import dask_worker, share_of_machine
from zemosaic_phase3.errors import (
    CalibrationError,
    NoFramesError,
    OutputError,
    SelfCheckError,
    SpecError,
    StackCancelled,
)
from zemosaic_phase3.io.atomic_write import machine
from zemosaic_phase3.pipeline.input_list import Inputs
from zemosaic_phase3.pipeline.journal import version

FOR_GOOD: Final = (
    NoFramesError,
    CalibrationError,
    SpecError,
    StackCancelled,
)  # of frames and options: nobody can do it
CHUNK: Final = 1 << 20


def make_tile(order: TileOrder, called: str = "") -> TileRecord:
    """Make a tile, unless it is there already; never raises for what is wrong with the tile.

    Parameters
    ----------
    order : TileOrder
    called : str
        Name of the worker; default: as Dask has it.

    Returns
    -------
    TileRecord
    """
    worker = called or _worker_name()
    me = TileRecord(
        order.name, "failed", output=order.output.name, worker=worker, host=platform.node(), pid=os.getpid(),
        n_frames=len(order.frames), code=version(), bands=order.bands,
    )  # fmt: skip
    if order.code != version():
        return replace(me, state="other code", reason=f"runs {version()}, and the order comes from {order.code}")
    try:
        key = order.key()
        known = None if order.options.fresh else finished(order, key)
        if known is not None:
            return known
        began = time.perf_counter()
        cpu = time.process_time()
        me = replace(me, key=key, began=_now(), attempts=_note_beginning(order, worker))
        return _stacked(order, me, began, cpu)
    except FOR_GOOD as exc:
        return replace(me, reason=str(exc))
    except Exception as exc:  # noqa: BLE001 - a wall: what goes wrong with one tile is that tile's reason
        told = str(exc) or type(exc).__name__
        text = told if isinstance(exc, OutputError | SelfCheckError | OSError) else f"{type(exc).__name__}: {told}"
        return replace(me, reason=" ".join(text.split()), may_retry=True)


def finished(order: TileOrder, key: str) -> TileRecord | None:
    """Return the record of a tile that is there, whole and of the same frames and options; None: it is to be made."""
    record = TileRecord.read(order.record)
    if record is None or record.key != key or record.state not in ("made", "kept") or not order.output.is_file():
        return None
    if order.output.stat().st_size != record.size or sha256_of(order.output) != record.sha256:
        return None
    other = () if record.code == order.code else (f"made by other code: {record.code}",)
    return replace(record, state="kept", notes=(*record.notes, *other))


def _stacked(order: TileOrder, me: TileRecord, began: float, cpu: float) -> TileRecord:
    """Stack, write the tile, then its record."""
    from zemosaic_phase3.cluster.over_workers import OverWorkers
    from zemosaic_phase3.pipeline.stack_files import stack_files

    options, read = order.options, _read_so_far()
    memory, threads = share_of_machine(options, order.per_host)
    elsewhere = OverWorkers(order.bands, options, order.per_host) if order.bands > 1 else None
    tile = stack_files(
        Inputs(list(order.frames), []), order.output, stack=options.stack, register=options.register,
        select=options.select, bayer=options.bayer, calibration=options.calibration, device=options.device,
        require_gpu=options.require_gpu, memory=memory, workers=threads, maps=options.maps, overwrite=True,
        self_check=options.self_check, min_frames=options.min_frames, resume=options.resume,
        cache=journal_folder(Path(order.folder)) if options.resume else None, elsewhere=elsewhere,
    )  # fmt: skip
    report = tile.report
    made = replace(
        me, state="made", device=report.device, device_reason=report.device_reason,
        seconds=round(time.perf_counter() - began, 3),
        cpu_seconds=round(time.process_time() - cpu, 3), size=order.output.stat().st_size,
        sha256=sha256_of(order.output), pixels=pixels_of(order.output), n_used=report.n_used,
        n_needed=report.n_needed, measured_before=report.resumed.measured, read_bytes=_read_so_far() - read,
        peak_bytes=report.peak_rss_bytes, notes=tuple(report.warnings),
        stages={name: round(seconds, 3) for name, seconds in report.seconds.items()},
    )  # fmt: skip
    made.write(order.record)
    order.begun.unlink(missing_ok=True)
    return made


def journal_folder(folder: Path) -> Path:
    """Return the folder of the journal that all workers of this machine share.

    Each machine has its own: SQLite's log needs memory that its readers share, which no network folder gives.
    """
    own = folder / WORK_FOLDER / f"journal-{machine()}"
    own.mkdir(parents=True, exist_ok=True)
    return own


def _note_beginning(order: TileOrder, worker: str) -> int:
    """Write down that the tile is begun, for whoever looks on; return how often it was begun since it was finished."""
    line = json.dumps({"worker": worker, "host": platform.node(), "pid": os.getpid(), "began": _now()}) + "\n"
    with order.begun.open("ab") as stream:
        stream.write(line.encode())
    return beginnings(order)


def beginnings(order: TileOrder) -> int:
    """Return how often a tile was begun and not finished."""
    try:
        return order.begun.read_bytes().count(b"\n")
    except OSError:
        return 0


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            found.update(block)
    return found.hexdigest()


def pixels_of(path: Path) -> str:
    """Return a digest of the image and the maps of a tile, without the cards, which tell when it was made."""
    from astropy.io import fits

    found = hashlib.sha256()
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus:
            if hdu.is_image and hdu.data is not None:
                found.update(f"{hdu.name} {hdu.data.dtype.str} {hdu.data.shape}".encode())
                found.update(hdu.data.tobytes())
    return found.hexdigest()


def _read_so_far() -> int:
    """Return the bytes that this process has read, from the disk or from memory that holds files; 0: not known."""
    import psutil

    with contextlib.suppress(AttributeError, OSError, psutil.Error):
        return int(getattr(psutil.Process().io_counters(), "read_chars", 0))
    return 0


def _worker_name() -> str:
    worker = dask_worker()
    return f"process {os.getpid()}" if worker is None else str(worker.name)
