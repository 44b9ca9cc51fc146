"""The same exposures as FITS and in every other format stack to the same bits."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import formats_case as formats
import numpy as np
import pytest
import tifffile
from astropy.io import fits

import zemosaic_phase3 as zp
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

SKY = SimulationSpec(n_frames=5, height=120, width=160, n_stars=45, flux_min=4000.0, seed=4, bayer="GRBG")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("formats")
    simulate(SKY, folder / "fits")
    tile = zp.stack(folder / "fits", register="stars", device="cpu", progress=False)
    assert tile.report.n_used == SKY.n_frames
    return folder, tile.image


@pytest.mark.parametrize("kind", ["tif", "packed tif", "xisf", "packed xisf", "dng", "ser", "zip", "tar"])
def test_every_format_gives_the_bits_of_fits(session: tuple[Path, np.ndarray], kind: str) -> None:
    folder, wanted = session
    subs = sorted((folder / "fits").glob("*.fit*"))
    frames = [fits.getdata(path) for path in subs]
    made = folder / kind
    made.mkdir()
    cfa = fits.getval(subs[0], "BAYERPAT")
    inputs = made
    for k, pixels in enumerate(frames):
        if kind == "tif":
            tifffile.imwrite(made / f"{k}.tif", pixels)
        elif kind == "packed tif":
            tifffile.imwrite(made / f"{k}.tif", pixels, compression="zlib", rowsperstrip=16)
        elif kind.endswith("xisf"):
            options = {"codec": "lz4", "shuffle": True} if kind.startswith("packed") else {}
            formats.write_xisf(made / f"{k}.xisf", pixels, **options)
        elif kind == "dng":
            formats.write_dng(made / f"{k}.dng", pixels, cfa=cfa)
    if kind == "ser":
        formats.write_ser(made / "a.ser", frames, cfa)
    elif kind == "zip":
        inputs = made / "subs.zip"
        with zipfile.ZipFile(inputs, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in subs:
                packed.write(path, path.name)
    elif kind == "tar":
        inputs = made / "subs.tar"
        with tarfile.open(inputs, "w") as tar:
            tar.add(folder / "fits", "subs", filter=lambda info: info if not info.name.endswith(".npz") else None)
    tile = zp.stack(
        inputs, made / "master.fits", bayer=cfa, register="stars", device="cpu", progress=False, resume=False
    )
    assert tile.report.n_used == SKY.n_frames, tile.report.dropped
    np.testing.assert_array_equal(tile.image, wanted)
    assert not list(made.glob(".zemosaic*"))
