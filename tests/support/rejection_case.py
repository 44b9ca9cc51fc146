"""What several tests share: made for the tests of ``rejection``."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from zemosaic_phase3.combine import block, kernel_arguments
from zemosaic_phase3.methods import KERNELS
from zemosaic_phase3.runtime.lanes import LANES


def run(
    cube, method="none", combine="mean", par=(3.0, 3.0, 0.05, 0.05), weights=None, rewinsor=False, start=0, stop=None,
    limits=False, tolerance=None,
):  # fmt: skip
    """Combine a cube (N, P) float32 with one channel; returns a dictionary of the kernel's outputs."""
    cube = np.ascontiguousarray(cube, np.float32)
    n, p = cube.shape
    out = {
        "image": np.full(p, -1, np.float32),
        "coverage": np.full(p, -1, np.int32),
        "weight": np.full(p, -1, np.float32),
        "low": np.full(p, -1, np.int32),
        "high": np.full(p, -1, np.int32),
        "hits": np.zeros((n, 3), np.int64),
    }
    per_frame = np.ones(n) if weights is None else np.asarray(weights, float)
    lanes = np.repeat(per_frame[:, None], LANES, axis=1)
    out["kept_low"], out["kept_high"] = np.empty(p, np.float32), np.empty(p, np.float32)
    arguments = kernel_arguments.KernelArguments(
        method, combine, rewinsor, weights is None, parameters(method, par), kernel_arguments.gesd_table(n, 0.05),
        np.ascontiguousarray(per_frame[:, None]),
    )  # fmt: skip
    out["lost"] = block.combine_block(
        cube, start, p if stop is None else stop, arguments, lanes, np.empty((0, 0), np.float32), 1,
        [out[k] for k in ("image", "coverage", "weight", "low", "high")], out["hits"],
        **({"kept": (out["kept_low"], out["kept_high"])} if limits else {}),
        **({} if tolerance is None else {"tolerance": np.ascontiguousarray(tolerance, np.float32)}),
    )  # fmt: skip
    return out


def parameters(method, par):
    """The kernels' parameters; limits that are fractions are a hundredth of the kappas."""
    par = np.array([*par, 0.3, 0.05], float)
    if KERNELS[method].unit == "fraction":
        par[:2] *= 0.01
    return par


def what_the_oracle_calls(method, par):
    """The oracle's name of a kernel, and its limits, for the parameters that :func:`run` takes."""
    low, high = (float(number) for number in parameters(method, par)[:2])
    kappas = {"kappa_low": low, "kappa_high": high}
    special = {
        "none": ("none", {}),
        "winsorized_quantile": ("winsorized_legacy", {**kappas, "limits": tuple(par[2:4]), "apply_rewinsor": False}),
        "winsorized_huber": ("winsorized_pixinsight", kappas),
        "percentile_clip": ("percentile_clip", {"low": low, "high": high}),
        "gesd": ("gesd", {"fraction": 0.3, "alpha": 0.05}),
        "least_squares_line": ("linear_fit_clip", {**kappas, "fit": "ols"}),
        "least_absolute_line": ("linear_fit_clip", {**kappas, "fit": "lad"}),
    }
    return special.get(method, (method, kappas))


def printed_with_and_without_compiler(program):
    """What a program prints with its kernels compiled, and with their text run by the interpreter."""
    return [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "NUMBA_DISABLE_JIT": flag}, capture_output=True,
            text=True, check=True,
        ).stdout
        for flag in ("0", "1")
    ]  # fmt: skip
