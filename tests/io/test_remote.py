"""Frames in object storage, on a real server of S3's protocol (moto): read by ranges, the same bits as from a disk."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from mosaic_case import write_panels

from zemosaic_phase3.errors import FrameError, NoFramesError
from zemosaic_phase3.io import remote
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.remote import is_remote
from zemosaic_phase3.pipeline.input_list import list_inputs
from zemosaic_phase3.pipeline.stack_files import stack_files

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A file system of s3fs, and a bucket ``subs`` on a server of this machine."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }  # fmt: skip
    import fsspec

    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("subs")
    yield system
    os.environ.clear()
    os.environ |= before
    server.stop()


def test_what_an_address_is() -> None:
    assert all(map(is_remote, ("s3://b/k.fits", "gs://b/k", "https://h/k", "memory://x")))
    assert not any(map(is_remote, ("/a/b", "c:/x", "a.fits", r"\\host\share", Path("/a"), 3)))


def test_every_kind_of_file_reads_as_from_a_disk(bucket: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 60000, (300, 400)).astype(np.uint16)
    fits.writeto(tmp_path / "a.fits", pixels, fits.Header({"EXPTIME": 10.0, "BAYERPAT": "GRBG"}))
    fits.writeto(tmp_path / "c.fits", rng.normal(0, 1, (3, 300, 400)).astype(np.float32))
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress((tmp_path / "a.fits").read_bytes()))
    fits.CompImageHDU(pixels.astype(np.int16), compression_type="RICE_1").writeto(tmp_path / "a.fits.fz")
    np.save(tmp_path / "a.npy", pixels.astype(np.float32))
    for path in tmp_path.iterdir():
        bucket.put(str(path), f"subs/kinds/{path.name}")
        near, far = open_source(str(path)), open_source(f"s3://subs/kinds/{path.name}")
        assert far.shape == near.shape
        np.testing.assert_array_equal(far.read_rows(70, 190), near.read_rows(70, 190))
        assert far.card_values("EXPTIME") == near.card_values("EXPTIME")
        assert far.origin is not None
        assert far.origin.path == f"s3://subs/kinds/{path.name}"
        assert far.raw_file is None
        if near.raw_layout is not None:
            out, other = (np.zeros((50, near.raw_file.row_bytes * near.raw_file.planes), np.uint8) for _ in range(2))
            near.read_raw(10, 60, out.reshape(-1))
            far.read_raw(10, 60, other.reshape(-1))
            np.testing.assert_array_equal(other, out)


def test_rows_are_ranges(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits.writeto(tmp_path / "big.fits", np.zeros((2000, 1000), np.float32))
    bucket.put(str(tmp_path / "big.fits"), "subs/big.fits")
    asked: list[int] = []
    real = remote.read_range

    def counted(address: str, first: int, last: int) -> bytes:
        asked.append(last - first)
        return real(address, first, last)

    monkeypatch.setattr(remote, "read_range", counted)
    source = open_source("s3://subs/big.fits")
    source.read_rows(500, 520)
    assert sum(asked) < 4 * remote.BUFFER + 20 * 4000
    assert len(asked) <= 4


def test_a_file_that_is_replaced_is_noticed(bucket: Any, tmp_path: Path) -> None:
    fits.writeto(tmp_path / "x.fits", np.ones((100, 100), np.float32))
    bucket.put(str(tmp_path / "x.fits"), "subs/x.fits")
    source = open_source("s3://subs/x.fits")
    fits.writeto(tmp_path / "x.fits", np.zeros((100, 100), np.float32), overwrite=True)
    bucket.put(str(tmp_path / "x.fits"), "subs/x.fits")
    with pytest.raises(FrameError, match="written or replaced"):
        source.read_rows(0, 10)


def test_what_is_not_there(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FrameError, match="no such file"):
        open_source("s3://subs/nothing.fits")
    assert list_inputs(["s3://subs/nothing"], None).frames == ["s3://subs/nothing"]
    with pytest.raises(NoFramesError, match="cannot reach it"):
        list_inputs(["nobody-knows://x/y.fits"], None)
    monkeypatch.setattr(remote, "WAIT_S", 0.001)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    remote.forget_connections()
    try:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(FrameError, match="cannot be read"):
            open_source("s3://subs/x.fits")
    finally:
        remote.forget_connections()
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_stack_has_the_same_bits(bucket: Any, tmp_path: Path) -> None:
    write_panels(tmp_path / "night", grid=(1, 1), n_frames=6, size=(64, 96))
    bucket.put(str(tmp_path / "night") + "/", "subs/night/", recursive=True)
    listed = list_inputs(["s3://subs/night"], None)
    assert [name.rpartition("/")[2] for name in listed.frames] == [f"p000_{k:04d}.fits" for k in range(6)]
    assert list_inputs(["s3://subs/night/p000_000[0-2].fits"], None).frames == listed.frames[:3]
    near = stack_files([tmp_path / "night"], device="cpu")
    far = stack_files(["s3://subs/night"], tmp_path / "far.fits", device="cpu")
    assert far.report.n_used == 6
    np.testing.assert_array_equal(far.image, near.image)
    again = stack_files(["s3://subs/night"], tmp_path / "far.fits", device="cpu", overwrite=True)
    assert again.report.resumed.measured == 6
