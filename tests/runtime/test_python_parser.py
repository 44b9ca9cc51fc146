"""Python's parser is never entered by two threads at once through what we call."""

from __future__ import annotations

import ast
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zemosaic_phase3.compat.mode_c import load_cache
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.tile_file import tile_hdus
from zemosaic_phase3.runtime.python_parser import PARSER

FRAME = np.ones((16, 16), np.float32)


@pytest.mark.parametrize("caller", ["a frame", "a cache", "a table"])
def test_another_thread_has_to_wait(caller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "frame.npy"
    np.save(path, FRAME)
    parse, free = ast.parse, []

    def watched(*args: Any, **options: Any) -> ast.AST:
        other = threading.Thread(target=lambda: free.append(PARSER.acquire(blocking=False) and not PARSER.release()))
        other.start()
        other.join()
        return parse(*args, **options)

    monkeypatch.setattr(ast, "parse", watched)
    if caller == "a frame":
        open_source(path)
    elif caller == "a cache":
        load_cache(path)
    else:
        tile_hdus(FRAME, None, frames_table={"NAME": ["a"], "SHIFT": np.zeros((1, 3))})
    monkeypatch.undo()
    assert free
    assert not any(free)
