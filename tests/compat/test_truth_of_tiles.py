"""What stands in a tile of an existing run is what the sky showed: clouded frames, levels, header, a dark rim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from tile_case import PLAIN, Make, cached, pixels

from zemosaic_phase3.photometry.frame_table import build_frame_table
from zemosaic_phase3.pipeline.group import open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.registering import register_group
from zemosaic_phase3.records import FrameStats
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import RegisterSpec, StackSpec

# --------------------------------------------------------------------------- clouds


def clouded(folder: Path, entry: dict[str, Any], seed: int = 5) -> dict[str, Any]:
    """The entry with the sky's light and noise alone; its WCS is as good as ever."""
    noise = np.random.default_rng(seed).normal(500.0, 20.0, pixels(entry).shape)
    return cached(folder, noise.astype(np.float32), entry)


@pytest.mark.parametrize("position", [0, 2])
def test_starless_frame_among_starry_ones_is_handed_back(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path, position: int
) -> None:
    entries[position] = clouded(tmp_path, entries[position])
    made = make(entries)
    assert [e["path_raw"] for e in made.retry[0]] == [entries[position]["path_raw"]]
    assert made.retry[0][0]["retry_attempt"] == 1
    assert made.header["MT_NFRAMES"] == made.header["ZMT_NALGN"] == 5
    # A reference of clouds would leave every frame to its header: the first that shows stars is the tile's.
    first = entries[1 if position == 0 else 0]
    assert made.header["ZMT_REF"] == Path(first["path_raw"]).name
    np.testing.assert_allclose(made.wcs.wcs.crpix, first["wcs"].wcs.crpix)
    row = made.table[position]
    assert not row["USED"] and "stars in the frame" in row["REASON"] and "the others show" in row["REASON"]


def test_field_where_nobody_has_stars_is_registered_by_its_headers(
    make: Make, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    made = make([clouded(tmp_path, entry, seed) for seed, entry in enumerate(entries)], stack_norm_method="none")
    assert made.retry == []
    assert made.header["MT_NFRAMES"] == 6
    assert set(made.table["METHOD"][1:]) == {"wcs"}


@pytest.mark.parametrize("mode", ["auto", "wcs"])
def test_starless_frame_is_stacked_where_registration_by_the_wcs_is_asked_for(
    entries: list[dict[str, Any]], tmp_path: Path, mode: Any
) -> None:
    entries[2] = clouded(tmp_path, entries[2])
    frames = [{"array": pixels(e), "wcs": e["wcs"], "name": str(k)} for k, e in enumerate(entries)]
    group, spec = open_group(frames), RegisterSpec(mode=mode)
    scan_group(group, spec, find_stars=True)
    register_group(group, spec)
    assert group.rows[2].used == (mode == "wcs")
    assert sum(row.used for row in group.rows) == (6 if mode == "wcs" else 5)


# --------------------------------------------------------------------------- levels


def stats(transparency: float, p90: float, *, n: int = 60, error: float = 0.005, seed: int = 0) -> FrameStats:
    """Measured of a frame of one colour: stars through the air, and percentiles that follow something else."""
    field, one = np.random.default_rng(7), np.ones(1)
    xy, flux = field.uniform(10, 500, (n, 2)), 1e4 * (field.pareto(1.2, n)[:, None] + 0.3)
    light = flux * transparency * (1.0 + error * np.random.default_rng(seed).standard_normal((n, 1)))
    return FrameStats(
        median=1000.0 * one, mad_sigma=30.0 * one, p25=980.0 * one, p90=p90 * one, variance=900.0 * one,
        luminance_p25=980.0, fwhm=3.0, n_stars=n, star_xy=xy.astype(np.float32), star_light=light.astype(np.float32),
        star_light_error=(error * flux * transparency).astype(np.float32),
        sky_mesh=np.full((6, 8, 1), 1000.0, np.float32), sky_cell=64,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("p90", "scale"),
    [
        (1060.0, 1.0 / 0.9),  # the percentiles say 1: 10 % wrong, the stars decide
        (980.0 + 80.0 * 0.9 * 1.01, 1.0 / 0.9 / 1.01),  # 1 % off: within what both know
    ],
)
def test_scale_from_percentiles_is_bounded_by_the_stars(p90: float, scale: float) -> None:
    frames = [stats(1.0, 1060.0), stats(0.9, p90, seed=1)]
    spec = StackSpec(normalize="linear_fit", weight="none", bounded_by_stars=True)
    table, used, _ = build_frame_table(["a", "b"], [np.eye(3)] * 2, frames, spec)
    assert used == [0, 1]
    assert table.scale[1, 0] == pytest.approx(scale, rel=0.004)
    assert table.scale[1, 0] * 1000.0 + table.offset[1, 0] == pytest.approx(1000.0, abs=3.0)
    told = [note for note in table.notes if "the stars contradict the scales of 1 of 2 frames" in note]
    assert len(told) == (p90 == 1060.0)
    assert table.normalize_method == "linear_fit"


def test_without_the_bound_or_without_stars_the_definition_stands() -> None:
    frames = [stats(1.0, 1060.0), stats(0.9, 1060.0, seed=1)]
    for spec, given in (
        (StackSpec(normalize="linear_fit", weight="none"), frames),
        (StackSpec(normalize="linear_fit", weight="none", bounded_by_stars=True), [replace(f, star_xy=f.star_xy[:3],
            star_light=f.star_light[:3], star_light_error=f.star_light_error[:3]) for f in frames]),
    ):  # fmt: skip
        table, _, _ = build_frame_table(["a", "b"], [np.eye(3)] * 2, given, spec)
        assert (table.scale[1, 0], table.offset[1, 0], table.notes) == (1.0, 0.0, [])


def test_tile_of_a_field_of_little_structure_has_the_levels_of_its_stars(make: Make, tmp_path: Path) -> None:
    spec = SimulationSpec(
        n_frames=7, height=160, width=224, n_stars=70, flux_min=3000.0, bayer="rgb", dither_px=4.0, rotation_deg=1.0,
        saturated_stars=0, nebula=0.0, cosmic_rays=0.0, hot_fraction=0.0, cold_fraction=0.0, trail_fraction=0.0,
        gradient=10.0, gain_range=(0.7, 1.0), seed=4,
    )  # fmt: skip
    truth = simulate(spec, tmp_path / "raw")
    group = []
    for k, name in enumerate(truth.names):
        data, header = fits.getdata(tmp_path / "raw" / name), fits.getheader(tmp_path / "raw" / name)
        np.save(tmp_path / f"{k}.npy", np.ascontiguousarray(np.moveaxis(data, 0, -1), dtype=np.float32))
        group.append({"path_raw": name, "path_preprocessed_cache": str(tmp_path / f"{k}.npy"),
                      "wcs": WCS(header, naxis=2), "header": header})  # fmt: skip
    made = make(group)
    found = np.array(made.table["SCALE"], float).reshape(7, -1)
    expected = truth.gains[0] / truth.gains
    np.testing.assert_allclose(found / expected[:, None], 1.0, atol=0.03)
    assert any("the stars contradict the scales" in text for text in made.told("INFO"))
    assert made.header["ZMT_NORM"] == "linear_fit"


# --------------------------------------------------------------------------- header


def test_cards_that_later_phases_read_are_always_there(make: Make, entries: list[dict[str, Any]]) -> None:
    header = make(entries[:1], **PLAIN, stack_kappa_low=2.5).header
    assert (header["ZMT_KAPLO"], header["ZMT_KAPHI"]) == (2.5, 3.0)
    assert [header[f"RGBGAIN{c}"] for c in "RGB"] == [1.0, 1.0, 1.0]
    assert "RGBEQMED" not in header  # there is no such median


# --------------------------------------------------------------------------- a dark rim


def rimmed(entry: dict[str, Any], folder: Path, side: str, share: float, depth: float) -> dict[str, Any]:
    """The entry with a band along one side darker by ``depth`` ADU, as a shadow on the sensor leaves in every frame."""
    data = pixels(entry)
    rows, columns = (round(share * n) for n in data.shape[:2])
    where = {
        "bottom": np.s_[:rows], "top": np.s_[-rows:], "left": np.s_[:, :columns], "right": np.s_[:, -columns:],
    }[side]  # fmt: skip
    data[where] -= depth
    return cached(folder, data, entry)


BIG = SimulationSpec(
    n_frames=3, height=240, width=320, n_stars=60, flux_min=3000.0, bayer="rgb", dither_px=1.0, rotation_deg=0.0,
    saturated_stars=0, nebula=200.0, trail_fraction=0.0, gradient=60.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Entries of frames that are large enough to know a rim from a gradient."""
    folder = tmp_path_factory.mktemp("large")
    group = []
    for k, name in enumerate(simulate(BIG, folder / "raw").names):
        data, header = fits.getdata(folder / "raw" / name), fits.getheader(folder / "raw" / name)
        np.save(folder / f"{k}.npy", np.ascontiguousarray(np.moveaxis(data, 0, -1), dtype=np.float32))
        group.append({"path_raw": name, "path_preprocessed_cache": str(folder / f"{k}.npy"),
                      "wcs": WCS(header, naxis=2), "header": header})  # fmt: skip
    return group


@pytest.mark.parametrize("side", ["bottom", "top", "left", "right"])
def test_dark_band_that_every_frame_has_is_cropped(
    make: Make, large: list[dict[str, Any]], tmp_path: Path, side: str
) -> None:
    made = make([rimmed(entry, tmp_path, side, 0.06, 200.0) for entry in large], quality_crop_enabled=True)
    y0, x0, y1, x1 = (int(v) for v in made.header["ZMT_QBOX"].split(","))
    cut = {"bottom": y0, "top": 240 - y1, "left": x0, "right": 320 - x1}
    width = round(0.06 * (240 if side in ("bottom", "top") else 320))
    assert width <= cut.pop(side) <= width + 8 + 16  # the margin, and the size of a block
    assert max(cut.values()) <= 12  # what the dither leaves to the other sides, and the margin
    assert made.unit().shape[:2] == (y1 - y0, x1 - x0)


@pytest.mark.parametrize("vignetting", [0.0, 0.3])
def test_clean_tile_is_not_cropped(make: Make, large: list[dict[str, Any]], tmp_path: Path, vignetting: float) -> None:
    y, x = np.mgrid[-1:1:240j, -1:1:320j]
    shade = (1.0 - vignetting * (x**2 + y**2) / 2.0)[..., None].astype(np.float32)
    made = make([cached(tmp_path, pixels(e) * shade, e) for e in large], quality_crop_enabled=True)
    assert made.header["ZMT_QCRO"] is False


# --------------------------------------------------------------------------- filler


def test_zeros_around_a_frame_are_no_data(make: Make, entries: list[dict[str, Any]], tmp_path: Path) -> None:
    true = make(entries)
    for k, entry in enumerate(entries):
        padded = pixels(entry)
        padded[: 8 * k] = padded[:, : 8 * k] = 0.0
        entries[k] = cached(tmp_path, padded, entry)
    made = make(entries)
    assert made.header["MT_NFRAMES"] == 6
    assert made.unit().shape == true.unit().shape
    corner = np.s_[12:36, 12:36]
    assert np.nanmedian(made.unit()[corner]) == pytest.approx(np.nanmedian(true.unit()[corner]), abs=8.0)
    assert np.nanmin(made.unit()) > 0.5 * np.nanmedian(true.unit())
