"""What was made, by whom, on what: the manifest of a folder of tiles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from zemosaic_phase3.cluster.order import WORK_FOLDER, TileRecord
from zemosaic_phase3.cluster.run import TilesResult
from zemosaic_phase3.cluster.tile_plan import PlannedTile
from zemosaic_phase3.io.atomic_write import written_whole

MANIFEST: Final = "manifest.json"
MANIFEST_SCHEMA: Final = 1


def manifest_document(
    result: TilesResult, tiles: Iterable[PlannedTile], *, plan: str = "", command: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the manifest, ready for JSON."""
    planned: Mapping[str, PlannedTile] = {tile.name: tile for tile in tiles}
    rows = []
    for record in result.records:
        tile = planned[record.name]
        place = {"ra": tile.ra, "dec": tile.dec} if tile.ra == tile.ra else {"ra": None, "dec": None}
        rows.append({**asdict(record), "group": tile.group, **place, "is_doubled": record.name in result.doubled})
    workers: dict[str, dict[str, Any]] = {}
    for record in result.records:
        if record.worker:
            one = workers.setdefault(f"{record.worker} {record.host}", {"tiles": 0, "gpu": 0, "seconds": 0.0})
            one["tiles"] += record.state == "made"
            one["gpu"] += record.state == "made" and record.device == "gpu"
            one["seconds"] += record.seconds if record.state == "made" else 0.0
    states = [record.state for record in result.records]
    return {
        "schema": MANIFEST_SCHEMA, "command": list(command), "plan": plan, "seconds": round(result.seconds, 3),
        "made": states.count("made"), "kept": states.count("kept"), "failed": len(result.failed),
        "orders_lost": result.orders_lost, "workers": workers, "tiles": rows,
    }  # fmt: skip


def write_manifest(document: Mapping[str, Any], folder: Path) -> Path:
    """Write the manifest of a folder, atomically, over an earlier one."""
    path = folder / MANIFEST
    data = (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
    with written_whole(path, len(data), overwrite=True) as stream:
        stream.write(data)
    return path


def records_in(folder: Path) -> dict[str, TileRecord]:
    """Return the records of the tiles of a folder by name, whatever runs made them."""
    found = (TileRecord.read(path) for path in sorted((folder / WORK_FOLDER).glob("*.json")))
    return {record.name: record for record in found if record is not None}
