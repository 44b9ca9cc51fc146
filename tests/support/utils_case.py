"""What several tests share: made for the tests of ``utils``."""

from __future__ import annotations

import numpy as np
from astropy.io import fits

from zemosaic_phase3.io.atomic_write import write_fits_atomically
from zemosaic_phase3.io.tile_file import tile_hdus

HEIGHT, WIDTH = 12, 10
RNG = np.random.default_rng(7)
COLOUR = RNG.normal(900.0, 30.0, (HEIGHT, WIDTH, 3)).astype(np.float32)
COLOUR[2, 3] = np.nan


def read_back(path):
    """All units of a file, in memory; astropy checks the checksums, and any warning is an error here."""
    with fits.open(path, checksum=True, memmap=False) as hdus:
        for hdu in hdus:
            assert {"CHECKSUM", "DATASUM"} <= {*hdu.header}
            assert hdu.data is not None
        hdus.verify("exception")
        return fits.HDUList([hdu.copy() for hdu in hdus])


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def write(path, value=1.0, overwrite=True):
    write_fits_atomically(tile_hdus(np.full((9, 9), value), None), path, overwrite=overwrite)


def value_of(path):
    return read_back(path)[0].data[0, 0]


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail
