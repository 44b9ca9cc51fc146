"""What a job asks for, as numbers: every specification has one, and both engines take the same."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from zemosaic_phase3.combine.kernel_arguments import (
    NO_TABLE,
    gesd_table,
)
from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.engine.job import Job, make_job
from zemosaic_phase3.methods import KERNELS, REJECTIONS, LineFit, RejectName, WscImpl
from zemosaic_phase3.spec import StackSpec

N, SHAPE = 12, (6, 7, 3)


def job_of(spec: StackSpec, **changes: object) -> Job:
    frames = np.random.default_rng(3).normal(1000.0, 30.0, (N, *SHAPE)).astype(np.float32)
    return replace(make_job(as_frames(list(frames)), replace(spec, normalize="none", weight="none")), **changes)


def test_every_kernel_is_asked_for_and_every_rejection_has_one() -> None:
    asked = {
        job_of(StackSpec(reject=reject, wsc_impl=wsc, line_fit=fit)).kernel_arguments().method
        for reject, wsc, fit in itertools.product(get_args(RejectName), get_args(WscImpl), get_args(LineFit))
    }
    asked.add(job_of(StackSpec(reject="kappa_sigma"), clipped_kappa=True).kernel_arguments().method)
    assert asked == set(KERNELS)
    assert set(get_args(RejectName)) == {rejection.name for rejection in REJECTIONS}


@pytest.mark.parametrize("rewinsor", [True, False])
@pytest.mark.parametrize("wsc", get_args(WscImpl))
@pytest.mark.parametrize("reject", get_args(RejectName))
def test_only_quantile_winsorizing_replaces(reject: str, wsc: str, rewinsor: bool) -> None:
    recipe = job_of(StackSpec(reject=reject, wsc_impl=wsc, apply_rewinsor=rewinsor)).kernel_arguments()
    assert recipe.rewinsor == (rewinsor and (reject, wsc) == ("winsorized_sigma_clip", "legacy_quantile"))
    assert recipe.critical is (gesd_table(N, 0.05) if reject == "gesd" else NO_TABLE)


def test_weights_are_uniform_only_if_no_sample_has_one() -> None:
    assert job_of(StackSpec()).kernel_arguments().uniform
    assert not job_of(StackSpec(radial_weight=True)).kernel_arguments().uniform
    assert not job_of(StackSpec(), sample_weight=np.ones((N, *SHAPE), np.float32)).kernel_arguments().uniform
    weighted = job_of(StackSpec())
    weighted.table.weight[1, 2] = 0.5
    recipe = weighted.kernel_arguments()
    assert not recipe.uniform
    np.testing.assert_array_equal(recipe.weights, weighted.table.weight)


def test_the_numbers_are_known_without_the_kernels() -> None:
    code = "import sys, zemosaic_phase3.combine.kernel_arguments; print('numba' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).strip() == "False"
