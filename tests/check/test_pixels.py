from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.check.definitions import Pixel
from zemosaic_phase3.check.pixels import Definition, definition_of, judge_pixel
from zemosaic_phase3.check.samples import Samples
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.methods import REJECTIONS
from zemosaic_phase3.spec import StackSpec


def samples(x: np.ndarray, error: float = 0.0) -> Samples:
    x = np.asarray(x, float)[:, None, None]
    return Samples(x, np.full(x.shape, error), np.ones(x.shape))


def judge(definition: Definition, x: np.ndarray, found: Pixel, error: float = 0.0) -> bool:
    return judge_pixel(definition, found, samples(x, error), 0, 0).agrees


CLIP = Definition("sigma_clip", {"kappa_low": 3.0, "kappa_high": 3.0}, "mean")


def test_every_rejection_has_a_definition() -> None:
    source = open_source(np.zeros((8, 8), np.float32))
    for row in REJECTIONS:
        choice = {} if row.choice is None else {row.choice[0]: row.choice[1]}
        job = make_job([Frame(source)], StackSpec(reject=row.name, normalize="none", weight="none", **choice))
        made = definition_of(job).of(np.arange(12.0), np.ones(12))
        assert np.isfinite(made.value) and made.coverage == 12


def test_a_value_or_a_count_that_is_off_is_seen(rng: np.random.Generator) -> None:
    x = rng.normal(1000.0, 10.0, 40).astype(np.float32)
    right = CLIP.of(x, np.ones(40))
    assert judge(CLIP, x, right)
    assert judge(CLIP, x, right._replace(value=float(np.float32(right.value))))
    for wrong in (
        right._replace(value=right.value + 0.01), right._replace(value=float("nan")), right._replace(value=np.inf),
        right._replace(coverage=39), right._replace(n_low=right.n_low + 1), right._replace(weight_sum=39.0),
    ):  # fmt: skip
        assert not judge(CLIP, x, wrong)


@pytest.mark.parametrize("bit", [20, 23, 27, 30, 31])
def test_a_flipped_bit_is_seen(bit: int, rng: np.random.Generator) -> None:
    x = rng.normal(1000.0, 10.0, 40).astype(np.float32)
    right = CLIP.of(x, np.ones(40))
    flipped = (np.float32(right.value).reshape(1).view(np.uint32) ^ np.uint32(1 << bit)).view(np.float32)[0]
    assert not judge(CLIP, x, right._replace(value=float(flipped)), error=0.002)


def test_a_missing_frame_is_seen(rng: np.random.Generator) -> None:
    x = rng.normal(1000.0, 10.0, 2000).astype(np.float32)
    without = CLIP.of(x[1:], np.ones(1999))
    assert not judge(CLIP, x, without._replace(coverage=2000, weight_sum=without.weight_sum + 1), error=0.002)


def test_a_sample_on_a_limit_may_fall_on_either_side() -> None:
    definition = Definition("percentile_clip", {"low": 0.1, "high": 0.1}, "mean")
    x = np.array([100.0, 100.0, 100.0, 100.0, 110.0])
    for high in (110.0 * (1 - 1e-8), 110.0, 110.0 * (1 + 1e-8)):
        x[-1] = high
        for kept in (4, 5):
            found = Pixel(float(x[:kept].mean()), 5, float(kept), 0, 5 - kept)
            assert judge(definition, x, found, error=1e-5)
    x[-1] = 110.1
    assert not judge(definition, x, Pixel(float(x.mean()), 5, 5.0, 0, 0), error=1e-5)


def test_a_pixel_without_samples_is_nan() -> None:
    x = np.full(4, np.nan)
    assert judge(CLIP, x, Pixel(float("nan"), 0, 0.0, 0, 0))
    assert not judge(CLIP, x, Pixel(0.0, 0, 0.0, 0, 0))
