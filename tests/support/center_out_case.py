"""What several tests share: made for the tests of ``center_out``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS


@dataclass
class Entry:
    tile_id: int
    preview: np.ndarray | None
    wcs: WCS | None
    stats: Mapping[str, float] | None
    gain: float
    offset: float
    mode: str


class Run:
    """What a run offers its tiles (the names are those of existing runs)."""

    def __init__(self, anchor: int, patience: float = 120.0, tiles: int = 0) -> None:
        self.anchor_original_id = anchor
        self.ordered_tile_ids = list(range(tiles))
        self.entries: dict[int, Entry] = {}
        self.ready = threading.Event()
        self.patience = patience
        self.waited = 0

    def get_rank(self, tile_id: int) -> int:
        return abs(tile_id - self.anchor_original_id)

    def get_distance(self, tile_id: int) -> float:
        return float(self.get_rank(tile_id))

    def wait_for_anchor(self) -> bool:
        self.waited += 1
        return self.ready.wait(self.patience)

    def register_tile(self, tile_id, preview, preview_wcs, stats, gain, offset, mode) -> None:
        self.entries[tile_id] = Entry(tile_id, preview, preview_wcs, stats, gain, offset, mode)
        if tile_id == self.anchor_original_id:
            self.ready.set()

    def get_processed_tiles(self, exclude_tile_id: int | None = None) -> list[Entry]:
        return [entry for entry in list(self.entries.values()) if entry.tile_id != exclude_tile_id]

    def get_anchor_stats(self) -> Mapping[str, float] | None:
        anchor = self.entries.get(self.anchor_original_id)
        return anchor.stats if anchor else None
