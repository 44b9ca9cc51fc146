"""A few kills of a stack; ``kills.py`` beside this file makes as many as one likes."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from kill_case import Kills

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX matter")


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Kills:
    return Kills(tmp_path_factory.mktemp("kills") / "runs")


def test_files_are_old_or_new_or_absent(kills: Kills) -> None:
    chance = random.Random(11)  # noqa: S311 - not for secrets
    for is_new in (False, True):
        kills.at_moment(chance.uniform(0.3, 1.0) * kills.seconds, is_new=is_new)
    assert not kills.damaged()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_every_step_of_the_writing_can_be_the_last(kills: Kills) -> None:
    try:
        steps = kills.calls_of_writing(is_new=False)
    except OSError as exc:  # as in a container that forbids it
        pytest.skip(f"strace cannot run: {exc}")
    assert {call for call, _ in steps} >= {"write", "fsync"}
    chance = random.Random(12)  # noqa: S311 - not for secrets
    before = sum(kills.killed.values())
    for call, number in chance.sample(steps, 2):
        kills.at_call(call, number, is_new=False)
    assert sum(kills.killed.values()) > before, "no kill met its call"
    assert not kills.damaged()


def test_the_next_run_removes_what_they_left(kills: Kills, tmp_path: Path) -> None:
    (kills.strays / ".zemosaic-999999999-0123.tmp").write_bytes(b"part of a tile")
    assert kills.left_by_next_run() == []
    assert (kills.strays / "out.fits").exists()


def test_a_damaged_file_would_be_noticed(kills: Kills, tmp_path: Path) -> None:
    for name in ("out.fits", "out.png", "out.json"):
        data = (kills.folder / "new" / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        assert kills._state(tmp_path / name).startswith("damaged")  # noqa: SLF001 - the judge is judged
