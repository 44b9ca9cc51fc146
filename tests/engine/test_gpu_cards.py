"""One tile on several cards: the bits of one, whatever fails on the way."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from gpu_engine_case import CUDARuntimeError, stack_of
from host_cupy import OutOfMemoryError

from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.engine import cpu, gpu, gpu_cards
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import FrameError, NoCardLeftError, StackCancelled
from zemosaic_phase3.runtime import cuda, cuda_failure
from zemosaic_phase3.runtime.threads import Crew
from zemosaic_phase3.spec import StackSpec

MAPS = ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts")


@pytest.fixture
def job():
    frames = as_frames(stack_of(n=9, shape=(41, 17, 3)))
    return make_job(frames, StackSpec(normalize="none", weight="none", reject="sigma_clip"))


def assert_same(found, expected):
    for name in MAPS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.all_rejected == expected.all_rejected
    for name in ("rejected_low", "rejected_high", "coverage"):
        np.testing.assert_array_equal(found.total(name), expected.total(name), err_msg=name)


@pytest.mark.parametrize("cards", [(0,), (1,), (0, 1), (2, 0, 1)])
@pytest.mark.parametrize("rows", [None, 3])
def test_bits_are_those_of_one_processor(cupy, job, cards, rows):
    cupy.cards = 3
    done = []
    resources = Resources(workers=3, cards=cards, gpu_rows=rows)
    found = gpu.stack(job, resources, lambda stage, now, total: done.append((now, total)))
    assert_same(found, cpu.stack(job, Resources()))
    assert set(cupy.launched_on) <= set(cards)
    assert set(found.gpu.cards) <= set(cards)
    assert done == sorted(done)
    assert done[-1] == (41, 41)
    assert cupy.used == 0
    assert not cuda.RESERVED
    assert not Crew.at_work()


def test_all_cards_work_at_once(cupy, job):
    cupy.cards, waiting = 2, threading.Barrier(2, timeout=30.0)

    class Meeting(dict):
        def __contains__(self, card):  # asked by every launch: the first of either card wait for each other
            if card not in seen:
                seen.add(card)
                waiting.wait()
            return False

    seen = set()
    cupy.card_failures = Meeting()
    assert gpu.stack(job, Resources(workers=2, cards=(0, 1))).gpu.cards == (0, 1)


@pytest.mark.parametrize("status", [2, 999])
def test_a_card_that_fails_leaves_its_rows_to_the_others(cupy, job, status, caplog):
    cupy.cards = 2
    cupy.card_failures = {1: lambda: OutOfMemoryError("out of memory") if status == 2 else CUDARuntimeError(status)}
    found = gpu.stack(job, Resources(workers=2, cards=(0, 1)))
    assert_same(found, cpu.stack(job, Resources()))
    lost = dict(found.gpu.lost)
    if lost:  # the other card may have been quick enough to do its band as well
        assert found.gpu.cards == (0,)
        assert list(lost) == [1]
        assert "card 1 is given up" in caplog.text
        assert caplog.text.count("retrying once") == 1
    assert not cuda_failure.is_poisoned()


def test_cuda_is_lost_to_all_cards_at_once(cupy, job, caplog):
    cupy.cards = 2
    cupy.card_failures = {1: lambda: CUDARuntimeError(700)}
    with pytest.raises(NoCardLeftError, match="card 0: .*cannot be undone|card 1: .*700"):
        for _ in range(20):  # one card may do all, if the other is slow to begin
            gpu.stack(job, Resources(workers=2, cards=(0, 1), gpu_rows=1))
    assert cuda_failure.is_poisoned()
    assert "CUDA status 700, retrying" not in caplog.text


def test_no_card_is_left(cupy, job):
    cupy.cards = 2
    cupy.card_failures = {card: lambda: CUDARuntimeError(999) for card in (0, 1)}
    with pytest.raises(NoCardLeftError, match=r"card [01]: .*999.*; card [01]: .*999") as caught:
        gpu.stack(job, Resources(workers=2, cards=(0, 1)))
    assert cuda_failure.failure_of(caught.value).kind == "no_card"


def test_a_card_that_does_not_answer(cupy, job, monkeypatch):
    cupy.cards = 2
    use = cupy.use

    def silent(card):
        if card == 1:
            raise CUDARuntimeError(46)
        use(card)

    monkeypatch.setattr(cupy, "use", silent)
    found = gpu.stack(job, Resources(workers=2, cards=(0, 1)))
    assert_same(found, cpu.stack(job, Resources()))
    assert [card for card, _ in found.gpu.lost] == [1]
    with pytest.raises(NoCardLeftError, match="card 1"):
        gpu.stack(job, Resources(workers=2, cards=(1,)))


def test_who_stops_one_card_stops_all(cupy, job):
    cupy.cards = 2

    def stop(stage, now, total):
        raise StackCancelled("enough")

    with pytest.raises(StackCancelled):
        gpu.stack(job, Resources(workers=2, cards=(0, 1), gpu_rows=2), stop)
    assert cupy.used == 0


def test_a_frame_that_goes_is_dropped_on_all_cards(cupy, tmp_path):
    cupy.cards = 2
    arrays = stack_of(n=6)
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    frames = as_frames([tmp_path / f"{i}.npy" for i in range(6)])
    spec = StackSpec(normalize="none", weight="none", reject="sigma_clip")
    job = make_job(frames, spec)
    (tmp_path / "4.npy").write_bytes(b"gone")
    found = gpu.stack(job, Resources(workers=2, cards=(0, 1)))
    assert [name for name, _ in found.job.dropped] == [str(tmp_path / "4.npy")]
    expected = cpu.stack(make_job(as_frames([*arrays[:4], arrays[5]]), spec), Resources())
    np.testing.assert_array_equal(found.image, expected.image)
    with pytest.raises(FrameError):
        gpu.stack(make_job([frames[4]], spec), Resources(cards=(0, 1)))


class Rows:
    """Keeps rows as a journal does, and gives those of the last run."""

    def __init__(self):
        self.kept = []

    def restore(self, job, result):
        for rows, maps, _ in self.kept:
            for name, part in maps.items():
                getattr(result, name)[rows] = part
        if self.kept:
            last = max(self.kept, key=lambda piece: int(piece[2].sum()))
            result.frame_counts = last[2].copy()
        return sorted((rows for rows, *_ in self.kept), key=lambda rows: rows.start)

    def is_due(self):
        return True

    def keep(self, rows, result):
        maps = {name: getattr(result, name)[rows].copy() for name in MAPS[:-1]}
        self.kept.append((rows, maps, result.frame_counts.copy()))


def test_finished_bands_are_kept(cupy, job, monkeypatch):
    monkeypatch.setattr(gpu_cards, "BAND_BYTES", 1000)
    cupy.cards, kept, expected = 2, Rows(), cpu.stack(job, Resources())

    def stop(stage, now, total):
        if len(kept.kept) >= 2:
            raise StackCancelled("killed")

    with pytest.raises(StackCancelled):
        gpu.stack(job, Resources(workers=2, cards=(0, 1), gpu_rows=1), stop, kept)
    assert 0 < sum(rows.stop - rows.start for rows, *_ in kept.kept) < 41
    found = gpu.stack(job, Resources(workers=2, cards=(0, 1)), None, kept)
    assert_same(found, expected)
