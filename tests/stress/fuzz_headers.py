"""Spoilt headers by the thousand: none may end, crash or hang a process. Prints a table.

A second process opens, reads, measures and registers each frame as a run does, and makes a tile's header of it as if it
were the reference. What it raises other than ``FrameError`` is counted, and so are its death and a frame that takes
longer than ``--seconds``. The same first seed gives the same frames.

    python tests/stress/fuzz_headers.py [--inputs N] [--first SEED] [--seconds S]
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve()
for folder in (HERE.parents[2], HERE.parents[1] / "support"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from uncaught import uncaught  # noqa: E402 - found by the lines above

MEMORY = 6 << 30  # bytes of address space: a claim that is believed shows as MemoryError, not as a full machine
BATCH = 1000  # frames per process
PATIENCE = 60.0  # seconds without a word, after which a process that does not even answer signals is ended


class TooLongError(BaseException):
    """A frame took longer than allowed; no handler of the library must catch it."""


def handle(path: Path, reference: object, seed: int) -> None:
    """Do with one frame whatever a run does with it; FrameError where it cannot be used."""
    import numpy as np

    from zemosaic_phase3.io.frame_kind import kind_of
    from zemosaic_phase3.io.further_images import further_images
    from zemosaic_phase3.io.moments import MOMENT_KEYS, exposure_of
    from zemosaic_phase3.io.open_frame import open_source
    from zemosaic_phase3.io.same_pixels import same_exposures
    from zemosaic_phase3.io.tile_file import tile_hdus
    from zemosaic_phase3.pipeline.input_list import is_own_tile
    from zemosaic_phase3.pipeline.observation_cards import exposure_cards
    from zemosaic_phase3.pipeline.scan import scan_frame
    from zemosaic_phase3.pipeline.tile_header import cards_of_reference
    from zemosaic_phase3.registration.wcs import register_wcs
    from zemosaic_phase3.spec import RegisterSpec

    is_own_tile(path)
    source = open_source(path)
    source.read_rows(source.height // 2, source.height // 2 + 1)
    exposure = exposure_of(dict(zip(MOMENT_KEYS, source.card_values(*MOMENT_KEYS), strict=True)))
    kind_of(source)
    further_images(source)
    same_exposures({0: source, 1: open_source(path)}, {0: "now", 1: "now"})
    header, wcs = source.read_header(), source.wcs()
    if seed % 4 == 0 and source.height * source.width < 1_000_000:
        scan_frame(source, RegisterSpec(), find_stars=True)
    if wcs is not None:
        register_wcs(reference, wcs, source.shape, RegisterSpec())
        register_wcs(wcs, reference, source.shape, RegisterSpec())
    cards, _ = cards_of_reference(header, wcs, source.shape)
    cards.extend(exposure_cards([exposure, exposure], exposure, np.ones(2), matched=seed % 2 == 0), update=True)
    tile_hdus(np.zeros((8, 8, *source.shape[2:]), np.float32), cards).writeto(
        os.devnull, overwrite=True, checksum=True, output_verify="silentfix+ignore"
    )


def work(first: int, count: int, seconds: float) -> None:
    """Handle frames one after the other and say, line by line, how each of them ended."""
    import resource  # POSIX, like SIGALRM

    from header_case import originals, spoilt

    from zemosaic_phase3.errors import FrameError
    from zemosaic_phase3.io.open_frame import open_source

    faulthandler.enable()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    goods = originals()

    def too_long(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frame")
        path.write_bytes(goods[0])
        reference = open_source(path).wcs()
        handle(path, reference, 0)  # compiles what has to be compiled
        for seed in range(first, first + count):
            path.write_bytes(spoilt(seed, goods))
            say({"begin": seed})
            signal.setitimer(signal.ITIMER_REAL, seconds)
            began = time.perf_counter()
            try:
                handle(path, reference, seed)
                end = "used"
            except FrameError:
                end = "left out with a reason"
            except TooLongError:
                end = f"longer than {seconds:g} s"
            except BaseException as exc:  # noqa: BLE001 - to be counted
                end = uncaught(exc)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            say({"end": end, "seed": seed, "seconds": time.perf_counter() - began})


def say(words: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def fuzz(inputs: int, first: int, seconds: float) -> Iterator[tuple[int, str, float]]:
    """Yield seed, end and duration of each frame; a process that dies is one frame's end, and another goes on."""
    seed = first
    while seed < first + inputs:
        count = min(BATCH, first + inputs - seed)
        command = [sys.executable, str(HERE), "--work", str(seed), str(count), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            begun = -1
            watch = Watch(process)
            for line in process.stdout:
                watch.heard()
                told = json.loads(line)
                if "begin" in told:
                    begun = told["begin"]
                else:
                    yield told["seed"], told["end"], told["seconds"]
                    seed = told["seed"] + 1
            watch.stop()
            code = process.wait()
        if code != 0:
            if begun < seed:
                raise RuntimeError(f"the process ended with {code} before its first frame")
            yield begun, "hangs beyond signals" if watch.ended_it else f"the process died, {code}", 0.0
            seed = begun + 1


class Watch:
    """Ends a process that has been silent for too long."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        import threading

        self.process, self.ended_it, self._last = process, False, time.monotonic() + 3 * PATIENCE  # compiling
        self._done = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def heard(self) -> None:
        self._last = time.monotonic()

    def stop(self) -> None:
        self._done.set()

    def _look(self) -> None:
        while not self._done.wait(1.0):
            if time.monotonic() - self._last > PATIENCE:
                self.ended_it = True
                self.process.kill()
                return


def is_fault(end: str) -> bool:
    return end not in ("used", "left out with a reason")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000, help="frames (default: %(default)s)")
    parser.add_argument("--first", type=int, default=1, help="seed of the first (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="longest a frame may take (default: %(default)s)")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(int(args.work[0]), int(args.work[1]), float(args.work[2]))
        return 0
    ends: collections.Counter[str] = collections.Counter()
    seeds: dict[str, list[int]] = collections.defaultdict(list)
    slowest, began = 0.0, time.monotonic()
    for seed, end, took in fuzz(args.inputs, args.first, args.seconds):
        ends[end] += 1
        seeds[end].append(seed)
        slowest = max(slowest, took)
    sys.stdout.write("| end | frames | seeds |\n|---|---:|---|\n")
    for end, count in ends.most_common():
        some = ", ".join(map(str, seeds[end][:4])) if is_fault(end) else ""
        sys.stdout.write(f"| {end} | {count} | {some} |\n")
    sys.stdout.write(f"\n{sum(ends.values())} frames in {time.monotonic() - began:.0f} s, slowest {slowest:.2f} s\n")
    return int(any(map(is_fault, ends)))


if __name__ == "__main__":
    sys.exit(main())
