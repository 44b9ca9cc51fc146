"""Damaged, foreign or impossible caches of compiled code: the kernel is compiled anew, and nothing else happens."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from zemosaic_phase3.runtime import jit, kernel_cache

pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")


def _double(x: int) -> int:
    return 2 * x


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Make the kernel anew, as another process would, with its compiled code in a folder of its own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def make() -> Any:
        function = type(_double)(_double.__code__, {}, "_double")
        function.__module__ = __name__
        return jit.kernel(function)

    return make


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nb[ci]"))


def hits(kernel: Any) -> int:
    return sum(kernel.stats.cache_hits.values())


def test_another_process_finds_it(compiled: Callable[[], Any], tmp_path: Path) -> None:
    assert compiled()(4) == 8
    assert [file.suffix for file in files(tmp_path)] == [".nbc", ".nbi"]
    again = compiled()
    assert again(4) == 8
    assert hits(again) == 1


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "short": lambda data: data[:20],
    "half": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "another file": lambda data: b"\x80\x04}." * 40,
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(compiled: Callable[[], Any], tmp_path: Path, damage: str, suffix: str) -> None:
    compiled()(4)
    (file,) = (file for file in files(tmp_path) if file.suffix == suffix)
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[damage](whole))
    repaired = compiled()
    assert repaired(4) == 8
    assert hits(repaired) == 0
    later = compiled()
    assert later(4) == 8
    assert hits(later) == 1, "the cache is whole again"


def test_a_full_disk_means_no_cache(
    compiled: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kernel_cache.SealedFiles, "_open_for_write", full)
    assert compiled()(4) == 8
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps this in access lists")
def test_a_folder_that_others_may_write_is_neither_read_nor_written(
    compiled: Callable[[], Any], tmp_path: Path
) -> None:
    first = compiled()
    first(4)
    folder = jit.cache_folder(first)
    assert folder is not None
    folder.chmod(0o777)
    assert "others may write it" in kernel_cache.why_untrusted(folder)
    (index,) = folder.glob("*.nbi")
    planted = index.read_bytes()
    second = compiled()
    assert second(4) == 8
    assert hits(second) == 0
    assert index.read_bytes() == planted
    folder.chmod(0o700)
    third = compiled()
    third(4)
    assert hits(third) == 1


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_read(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    assert "another user (uid 12345)" in kernel_cache.why_untrusted(tmp_path)
    assert kernel_cache.why_untrusted(tmp_path / "not there") == ""
