"""Two kills, each gone on with; ``resume_kills.py`` beside this file makes as many as one likes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from resume_case import ResumedKills

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX matter")


def test_killed_runs_go_on_with_the_same_bits(tmp_path: Path) -> None:
    kills = ResumedKills(tmp_path)
    for share in (0.6, 0.9):
        kills.at_moment(share * kills.seconds)
    assert kills.faults == []
    assert kills.sound()
    assert kills.most_again["stack"] <= 2
