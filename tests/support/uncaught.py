"""Where an exception came from that nobody foresaw: what the scripts that spoil inputs count."""

from __future__ import annotations

import traceback
from pathlib import Path


def uncaught(exc: BaseException) -> str:
    """Name the kind of an exception, and the last function of the library, or else of all, that it came through."""
    last = traceback.extract_tb(exc.__traceback__)
    ours = [frame for frame in last if "zemosaic_phase3" in frame.filename] or last
    return f"uncaught {type(exc).__name__} in {Path(ours[-1].filename).name}:{ours[-1].name}"
