"""Which cards share a stack: what users say, what the machine has, and what a run remembers."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from gpu_engine_case import CUDARuntimeError, stack_of

from zemosaic_phase3.app.doctor import machine_facts
from zemosaic_phase3.engine import gpu_check
from zemosaic_phase3.errors import SpecError, ZeMosaicError
from zemosaic_phase3.pipeline import stack_files as files
from zemosaic_phase3.pipeline.cards import cards_of
from zemosaic_phase3.pipeline.device_policy import FRESH, OWN, DevicePolicy
from zemosaic_phase3.spec import RegisterSpec, StackSpec

PLAIN = {"stack": StackSpec(normalize="none", weight="none"), "register": RegisterSpec(mode="none")}


@pytest.fixture
def policy():
    names = {**OWN, "_P3_GPU_STATE": dict(FRESH)}
    made = DevicePolicy(names)
    names["_hard_disable"] = made.hard_disable
    return made


@pytest.mark.parametrize(
    ("said", "cards"),
    [("all", (0, 1, 2)), ("2", (0, 1)), (2, (0, 1)), ("1,", (1,)), ("2, 0", (2, 0)), ((2,), (2,)), (None, ())],
)
def test_words(cupy, said, cards):
    cupy.cards = 3
    assert cards_of(said) == cards


@pytest.mark.parametrize("said", ["none", "0", "-1", "1,1", ",", "0,-1", "1.5", (), [0, "x"]])
def test_wrong_words_are_told_what_is_right(cupy, said):
    cupy.cards = 3
    with pytest.raises(SpecError, match=r"--gpus .*: give all, how many \(2\), or which ones"):
        cards_of(said)


@pytest.mark.parametrize("said", ["4", "0,3"])
def test_cards_that_are_not_there(cupy, said):
    cupy.cards = 3
    with pytest.raises(SpecError, match="cards 0 to 2 here, not 3"):
        cards_of(said)
    cupy.cards = 1
    with pytest.raises(SpecError, match="card 0 here"):
        cards_of("2")


def stack(policy, **more):
    return files.stack_files(stack_of(n=6, shape=(40, 50, 3)), policy=policy, workers=2, **{**PLAIN, **more})


def test_two_cards_are_told_in_the_report(cupy, policy):
    cupy.cards = 2
    tile = stack(policy, gpus="all")
    assert tile.report.device == "gpu"
    assert tile.report.device_reason == "GPU, cards 0, 1"
    np.testing.assert_array_equal(tile.image, stack(policy, device="cpu").image)


def test_an_ill_card_is_left_out_from_the_start(cupy, policy, monkeypatch, caplog):
    cupy.cards = 2
    monkeypatch.setattr(gpu_check, "_KNOWN", {1: gpu_check.Usability(False, "it computes wrongly", "buy another")})
    assert stack(policy, gpus="all").report.device_reason == "GPU, card 0"
    assert "card 1 is not used: it computes wrongly; buy another" in caplog.text


def test_a_card_that_fails_is_disabled_once_for_the_run(cupy, policy, monkeypatch, caplog):
    cupy.cards = 2
    monkeypatch.setattr(gpu_check, "_KNOWN", {card: gpu_check.Usability(True) for card in (0, 1)})
    cupy.card_failures = {0: lambda: CUDARuntimeError(999)}
    tiles = [stack(policy, gpus="0,1") for _ in range(4)]
    assert all(tile.report.device == "gpu" for tile in tiles)
    assert caplog.text.count("card 0 disabled for remaining") == 1
    assert tiles[-1].report.device_reason == "GPU, card 1"
    policy.reset()
    cupy.card_failures.clear()
    assert stack(policy, gpus="0,").report.device_reason == "GPU, card 0", "a new run tries it again"


def test_no_card_left_is_the_processor(cupy, policy, monkeypatch, caplog):
    cupy.cards = 2
    monkeypatch.setattr(gpu_check, "_KNOWN", {card: gpu_check.Usability(True) for card in (0, 1)})
    cupy.card_failures = {card: lambda: CUDARuntimeError(999) for card in (0, 1)}
    tile = stack(policy, gpus="all")
    assert (tile.report.device, tile.report.gpu_attempts) == ("cpu", 1)
    assert "no card is left" in tile.report.device_reason
    assert policy.is_hard_disabled()
    assert stack(policy, gpus="all").report.gpu_attempts == 0
    with pytest.raises(ZeMosaicError, match="the GPU is required, but the GPU was disabled"):
        stack(policy, gpus="all", require_gpu=True)


def test_ill_cards_alone_are_refused_before_a_frame_is_read(cupy, policy, monkeypatch):
    cupy.cards = 1
    monkeypatch.setattr(gpu_check, "_KNOWN", {0: gpu_check.Usability(False, "it is broken", "mend it")})
    with pytest.raises(ZeMosaicError, match="the GPU is required, but .*card 0: it is broken; mend it"):
        files.stack_files(["/nowhere/1.fits"], policy=policy, gpus="all", require_gpu=True)


def test_a_machine_without_cards_uses_the_processor(policy, caplog):
    caplog.set_level(logging.INFO)
    assert stack(policy, gpus="all").report.device == "cpu"
    assert json.dumps(policy.state)


def test_doctor_lists_all_cards(cupy):
    cupy.cards = 3
    facts = [(label, text) for label, text in machine_facts() if label in ("GPU", "card 1", "card 2")]
    assert [label for label, _ in facts] == ["GPU", "card 1", "card 2"]
    assert all("a test tile came out right" in text for label, text in facts if label != "GPU")
