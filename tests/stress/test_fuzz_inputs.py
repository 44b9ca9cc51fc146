"""A few spoilt inputs; ``fuzz_inputs.py`` beside this file makes as many as one likes, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import fuzz_inputs
import pytest
from fuzz_inputs import End

from zemosaic_phase3.errors import FrameError

pytestmark = pytest.mark.filterwarnings("ignore")  # damaged files come with astropy's opinion of them


@pytest.fixture(scope="module")
def goods() -> dict[str, bytes]:
    return fuzz_inputs.originals()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fuzz_inputs.Run:
    return fuzz_inputs.Run(tmp_path_factory.mktemp("fuzz"))


def test_good_inputs_are_used(goods: dict[str, bytes], run: fuzz_inputs.Run) -> None:
    for raw in goods.values():
        run.handle(raw, whole=False)


def test_spoilt_inputs_are_used_or_left_out(goods: dict[str, bytes], run: fuzz_inputs.Run) -> None:
    left_out = 0
    for seed in range(1, 61):
        _, raw = fuzz_inputs.spoilt(seed, goods)
        try:
            run.handle(raw, whole=seed % 30 == 0)
        except FrameError:
            left_out += 1
    assert 5 < left_out < 55


def test_a_seed_gives_the_same_input(goods: dict[str, bytes]) -> None:
    assert [fuzz_inputs.spoilt(seed, goods) for seed in range(20)] == [
        fuzz_inputs.spoilt(seed, goods) for seed in range(20)
    ]


def test_every_way_changes_something(goods: dict[str, bytes]) -> None:
    import random

    for way in fuzz_inputs.WAYS:
        made = [way(random.Random(seed), goods["RICE"], goods) for seed in range(30)]  # noqa: S311 - not for secrets
        assert sum(raw != goods["RICE"] for raw in made) > 20


def test_ends_are_counted_in_the_table() -> None:
    ends = [
        End(1, "RICE", "used", 0.1), End(2, "RICE", "left out with a reason", 0.1),
        End(3, "npy", "uncaught KeyError in io.py:f", 0.2), End(4, "npy", "the process died, -11", 0.0),
        End(5, "npy", "longer than 5 s", 5.0), End(6, "npy", "hangs beyond signals", 0.0),
        End(7, "npy", "memory: 300 MB", 0.1),
    ]  # fmt: skip
    text = fuzz_inputs.report(ends, 7.0, "so")
    assert "| RICE | 1 | 1 | 0 | 0 | 0 | 0 |" in text
    assert "| npy | 0 | 0 | 1 | 1 | 2 | 1 |" in text
    assert "- the process died, -11: 1, seeds 4" in text


def test_a_process_that_dies_is_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import json, os, sys\n"
        "seed = int(sys.argv[2])\n"
        "print(json.dumps({'begin': seed, 'kind': 'x'}), flush=True)\n"
        "os.abort() if seed == 5 else None\n"
        "print(json.dumps({'end': 'used', 'seed': seed, 'kind': 'x', 'seconds': 0}), flush=True)\n"
        "print(json.dumps({'begin': seed + 1, 'kind': 'x'}), flush=True)\n"
        "os.abort()\n"
    )
    monkeypatch.setattr(fuzz_inputs, "HERE", script)
    assert [(end.seed, end.end) for end in fuzz_inputs.handled(5, 3, 1.0)] == [
        (5, "the process died, -6"), (6, "used"), (7, "the process died, -6"),
    ]  # fmt: skip
