"""The inherited functions against recorded numbers (``data/golden/README.md`` says what each field means)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from places import DATA

GOLDEN = DATA / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text())["cases"]
MAY_DIFFER = 0.001  # fraction of a case's pixels at the edge of a threshold
FRAME_LISTS = {"frames", "images", "image_list", "aligned_image_data_list"}  # passed as a list of arrays


@pytest.fixture(scope="module")
def recorded() -> Iterator[tuple[Any, Any]]:
    """Arrays given and returned."""
    with np.load(GOLDEN / "inputs.npz") as inputs, np.load(GOLDEN / "outputs.npz") as outputs:
        yield inputs, outputs


def arguments(case: dict[str, Any], inputs: Any) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a case."""
    values = []
    for parameter, key in case["inputs"].items():
        array = inputs[key]
        values.append(list(array) if parameter in FRAME_LISTS else array)
    kwargs = {k: tuple(v) if k.startswith("winsor_limits") else v for k, v in case["kwargs"].items()}
    if isinstance(kwargs.get("zconfig"), dict):
        kwargs["zconfig"] = SimpleNamespace(**kwargs["zconfig"])
    return values, kwargs


def named_results(case: dict[str, Any], result: Any, given: list[Any]) -> dict[str, Any]:
    """Results of a call under the names the manifest gives them."""
    function = case["function"].rpartition(".")[2]
    if function in ("stack_kappa_sigma_clip", "stack_winsorized_sigma_clip"):
        return dict(zip(("stacked", "rejected"), result, strict=True))
    if function == "stack_aligned_images":
        return {"stacked": result}
    if function == "equalize_rgb_medians_inplace":
        return {"image": given[0], "gains": result}
    if function == "make_radial_weight_map":
        return {"map": result}
    if function.startswith("_normalize_images"):
        return {"images": np.stack(result)}
    if function == "_calculate_image_weights_noise_variance":
        return {"weights": result}
    if function == "_compute_quality_weights":
        weights, method, stats = result
        assert method == case["method"]
        return {"weights": weights, "stats": [stats[key] for key in ("min", "max", "frames")]}
    if function.startswith("_reject_outliers"):
        array, keep = result
        assert keep is None or keep.dtype == bool
        return {"nan": np.isnan(array), "keep": keep}
    image, mask = result  # _apply_lecropper_pipeline
    return {"image": image, "mask": mask, "zeroed": np.isnan(image).any(axis=-1)}


def assert_close(case: dict[str, Any], got: Any, expected: np.ndarray) -> None:
    """At most 0.1 % of the values may lie beyond the tolerance."""
    got = np.asarray(got)
    assert got.shape == expected.shape
    if expected.dtype == bool:
        beyond = got != expected
    else:
        beyond = ~np.isclose(got, expected, rtol=case["rtol"], atol=case["atol"], equal_nan=True)
    assert beyond.mean() <= MAY_DIFFER, f"{beyond.sum()} of {beyond.size} values differ"


def expected_output(case: dict[str, Any], name: str, got: Any, outputs: Any) -> np.ndarray:
    """Recorded values, unpacked to the shape of the result where they are bits."""
    expected = outputs[case["outputs"][name]]
    if "packed" in case or (name == "zeroed" and expected.dtype == np.uint8):
        shape = np.shape(got)
        expected = np.unpackbits(expected)[: int(np.prod(shape))].reshape(shape).astype(bool)
    return expected


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_recorded_numbers(case: dict[str, Any], recorded: tuple[Any, Any]) -> None:
    inputs, outputs = recorded
    module, _, function = case["function"].rpartition(".")
    given, kwargs = arguments(case, inputs)
    before = [np.array(value) for value in given]
    got = named_results(case, getattr(importlib.import_module(module), function)(*given, **kwargs), given)
    if not case.get("inplace"):
        for value, copy in zip(given, before, strict=True):
            np.testing.assert_array_equal(value, copy, err_msg="the input was modified")

    # "quiet" marks pixels where nothing is rejected, for libraries that treat rejected samples otherwise. Ours is
    # defined as recorded, so all pixels count; one case has no quiet pixel and would compare nothing.
    skipped = {"quiet"} | ({"rejected"} if case.get("sane_rejected") is False else set())
    for name in case["outputs"].keys() - skipped:
        assert_close(case, got[name], expected_output(case, name, got[name], outputs))

    if case.get("expected", {}).get("unchanged"):
        np.testing.assert_array_equal(got["image"], before[0])
    if case.get("expected", {}).get("mask_is_none"):
        assert got["mask"] is None
