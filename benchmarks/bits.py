"""SHA-256 of what every method gives, to compare two versions of the code bit by bit.

Run ``python benchmarks/bits.py`` and again after a change: equal tables mean equal results. ``--gpu`` makes the same
table on the GPU, where it must be equal as well.

Parts: every rejection x combination x weight on frames in place (float32 colour and grey, uint16), with 3, 5, 14 and 70
frames; every rejection with a tolerance of the pixels; every interpolation, normalisation and weight on raw subs from a
folder.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import zemosaic_worker as worker
from zemosaic_phase3 import methods
from zemosaic_phase3.app.cli import main as program
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.spec import StackSpec

REJECTIONS = {row.name: {} for row in methods.REJECTIONS if row.choice is None} | {
    "winsorized legacy": {"stack_reject_algo": "winsorized_sigma_clip", "wsc_impl": "legacy_quantile"},
    "winsorized legacy dropped": {
        "stack_reject_algo": "winsorized_sigma_clip", "wsc_impl": "legacy_quantile", "apply_rewinsor": False,
    },
    "winsorized pixinsight": {"stack_reject_algo": "winsorized_sigma_clip", "wsc_impl": "pixinsight"},
    "linear_fit lad": {"stack_reject_algo": "linear_fit_clip", "line_fit": "lad"},
    "linear_fit ols": {"stack_reject_algo": "linear_fit_clip", "line_fit": "ols"},
    "percentile_clip": {"stack_kappa_low": 0.2, "stack_kappa_high": 0.1},
}  # fmt: skip
COMBINES = ("mean", "median", "min", "max")
WEIGHTS = ("none", "noise_variance", "radial")
INTERPOLATIONS = ("lanczos3", "bicubic", "bilinear", "smooth", "nearest")
NORMALISATIONS = (
    "none", "linear_fit", "sky_mean", "additive", "multiplicative", "additive_scaling", "multiplicative_scaling",
    "photometric", "auto",
)  # fmt: skip
RAW_WEIGHTS = ("noise_fwhm", "snr", "stars")


def frames(n: int, kind: str, seed: int) -> list[np.ndarray]:
    """Frames with outliers, equal values and, where the type has it, invalid samples."""
    rng = np.random.default_rng([seed, n])
    shape = (9, 37, 3) if kind == "rgb" else (9, 37)
    made = []
    for k in range(n):
        frame = rng.normal(1000.0 + 3.0 * k, 20.0 + k % 5, shape)
        frame[rng.random(shape) < 0.06] += 4000.0 * rng.random()
        frame[rng.random(shape) < 0.03] -= 700.0
        if kind == "u16":
            made.append(np.clip(np.rint(frame / 4) * 4, 0, 65535).astype(np.uint16))
            continue
        frame = frame.astype(np.float32)
        frame[rng.random(shape) < 0.02] = np.nan
        frame[0, 0] = np.nan
        frame[1, 1] = 7.0
        made.append(frame)
    return made


def sha(*arrays: np.ndarray | None) -> str:
    """Twelve digits of the hash of arrays with their shapes and types."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def in_place(stack: object, counts: tuple[int, ...]) -> dict[str, str]:
    """Hashes of image, maps and rejected shares by method, for frames that lie on one grid."""
    table = {}
    for kind, n in itertools.product(("rgb", "mono", "u16"), counts):
        data = frames(n, kind, 5)
        for (name, options), combine, weight in itertools.product(REJECTIONS.items(), COMBINES, WEIGHTS):
            params = {
                "stack_reject_algo": name, "stack_final_combine": combine,
                "stack_norm_method": "linear_fit" if weight == "noise_variance" else "none",
                "stack_weight_method": "none" if weight == "radial" else weight,
                "apply_radial_weight": weight == "radial", "poststack_equalize_rgb": False, **options,
            }  # fmt: skip
            image, found = stack(data, params)
            maps = (found[key] for key in ("coverage", "weight_map", "rejected_low", "rejected_high"))
            shares = np.array(found["frame_rejected_percent"])
            table[f"{kind} N={n} {name} {combine} {weight}"] = sha(image, *maps, shares)
    return table


def with_tolerance(gpu: bool, counts: tuple[int, ...]) -> dict[str, str]:
    """Hashes of image and maps by rejection, where samples within a tolerance of each pixel are kept."""
    table = {}
    for (kind, n), row in itertools.product(itertools.product(("rgb", "u16"), counts), methods.REJECTIONS):
        choice = {} if row.choice is None else {row.choice[0]: row.choice[1]}
        spec = StackSpec(normalize="none", reject=row.name, **choice)  # type: ignore[arg-type]
        job = make_job([Frame(open_source(frame)) for frame in frames(n, kind, 6)], spec)
        tolerance = np.random.default_rng(n).choice([0.0, 20.0, 100.0, 900.0], job.shape).astype(np.float32)
        if gpu:
            from zemosaic_phase3.engine.gpu import stack
        else:
            from zemosaic_phase3.engine.cpu import stack
        made = stack(replace(job, tolerance=tolerance), Resources(workers=2, rows=4, gpu_rows=4))
        table[f"{kind} N={n} {row.kernel} spared"] = sha(*(made.maps[name] for name in sorted(made.maps)), made.image)
    return table


def from_raw(folder: Path, device: str) -> dict[str, str]:
    """Hashes of tiles made from raw subs: registered, resampled, normalised, weighted."""

    def tile(**options: object) -> str:
        made = worker.stack_files([folder], stack=StackSpec(**options), device=device)
        return sha(made.image, made.alpha, *(made.maps[name] for name in sorted(made.maps)))

    table = {f"raw {name}": tile(interpolation=name) for name in INTERPOLATIONS}
    table |= {f"raw normalize {name}": tile(normalize=name, reject="sigma_clip") for name in NORMALISATIONS}
    table |= {f"raw weight {name}": tile(weight=name, reject="sigma_clip") for name in RAW_WEIGHTS}
    table["raw flatten"] = tile(flatten=True)
    table["raw without sparing"] = tile(spare_stars=False)
    table["raw radial bicubic"] = tile(radial_weight=True, interpolation="bicubic")
    return table


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="on the GPU; a tile that falls back is an error")
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 5, 14, 70], metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    plan = SimpleNamespace(use_gpu=options.gpu)

    def stack(data: list[np.ndarray], params: dict[str, object]) -> tuple[np.ndarray, dict[str, object]]:
        if not options.gpu:
            return worker._stack_master_tile_cpu(data, params)
        image, found, used_gpu = worker._stack_master_tile_auto(data, params, parallel_plan=plan)
        if not used_gpu:
            raise SystemExit(f"not on the GPU: {found['phase3_device_reason']}")
        return image, found

    table = in_place(stack, tuple(options.counts)) | with_tolerance(options.gpu, tuple(options.counts))
    with tempfile.TemporaryDirectory(prefix="bits-") as folder:
        arguments = [folder, "--frames", "7", "--size", "480x640", "--seed", "3", "--quiet", "--overwrite"]
        program(["simulate", *arguments])
        table |= from_raw(Path(folder), "gpu" if options.gpu else "cpu")
    lines = [f"{value}  {key}" for key, value in table.items()]
    lines.append(f"{sha(np.frombuffer(chr(10).join(lines).encode(), np.uint8))}  all {len(table)}")
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
        print(lines[-1])
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
