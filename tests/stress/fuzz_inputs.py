"""Spoilt inputs of every kind, by the hundred thousand: none may end, crash, hang or fill a process. Prints a table.

Good frames (FITS of 8 to 64 bits, float, coloured, a mosaic, tile-compressed by every method, in extensions, ``.npy``,
some of them in a ``.gz``) have bytes changed, blocks swapped, removed and doubled, cards added and spliced in from
other files, huge numbers put anywhere, descriptors and heaps of compressed images among them. Each is opened, header
and WCS read, measured, its stars found and registered on a good frame; every fiftieth is stacked with three good ones,
which must give a tile. Whatever is raised other than ``FrameError`` is counted, and so are the death of a process, an
input that takes more than ``--seconds`` of the processor, and memory beyond ten times the file and 96 MB. A seed gives
the same input.

    python tests/stress/fuzz_inputs.py [--inputs N] [--processes P] [--seconds S] [--first SEED] [--output FILE]
    python tests/stress/fuzz_inputs.py --show SEED > FILE       the input itself
"""

from __future__ import annotations

import argparse
import collections
import datetime
import faulthandler
import gzip
import io
import json
import logging
import os
import platform
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

HERE = Path(__file__).resolve()
for folder in (HERE.parents[2], HERE.parents[1] / "support"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from uncaught import uncaught  # noqa: E402 - found by the lines above

BATCH: Final = 1000  # inputs of a process
ADDRESSES: Final = 8 << 30  # bytes of address space of a process: a claim that is believed shows as MemoryError
PATIENCE: Final = 120.0  # seconds without a word, after which a process that does not answer signals is ended
COMPILING: Final = 900.0  # before its first input
SPARE: Final = 96 << 20  # bytes that any input may take besides ten times its size
STACKED: Final = 50  # one input in so many goes through a whole stack
SHAPE: Final = (96, 128)
GOOD: Final = ("used", "left out with a reason")


class TooLongError(BaseException):
    """An input took longer than allowed; no handler of the library must catch it."""


# ------------------------------------------------------------------------------------------- the inputs


def sky(seed: int = 1) -> Any:
    """Return a small frame with stars, (H, W) float64, ADU; seeds differ in their noise and by a shift."""
    import numpy as np

    rng, noise = np.random.default_rng(5), np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    image = np.full(SHAPE, 1000.0)
    for _ in range(40):
        cy, cx, flux = rng.uniform(6, SHAPE[0] - 6), rng.uniform(6, SHAPE[1] - 6), rng.uniform(2e3, 3e4)
        image += flux / 14.1 * np.exp(-((y - cy - 0.7 * (seed - 1)) ** 2 + (x - cx + 0.4 * (seed - 1)) ** 2) / 4.5)
    return image + noise.normal(0.0, 15.0, SHAPE)


def originals() -> dict[str, bytes]:
    """Return good inputs of every kind by name."""
    import numpy as np
    from astropy.io import fits
    from header_case import OBSERVED, SIP, WCS, frame_bytes

    image = sky()
    whole = np.clip(image, 0, 32000)
    cube = np.stack([whole, 0.8 * whole, 0.6 * whole])
    header = fits.Header()
    header.update({**WCS, **OBSERVED})

    def written(*units: Any) -> bytes:
        stream = io.BytesIO()
        fits.HDUList([fits.PrimaryHDU(), *units]).writeto(stream, output_verify="ignore")
        return stream.getvalue()

    def packed(pixels: Any, method: str, **options: Any) -> bytes:
        return written(fits.CompImageHDU(pixels, header, compression_type=method, **options))

    def saved(pixels: Any) -> bytes:
        stream = io.BytesIO()
        np.save(stream, pixels)
        return stream.getvalue()

    table = fits.BinTableHDU(np.zeros(5, [("a", "f4"), ("b", "S4")]))
    short, mosaic = whole.astype(np.int16), fits.PrimaryHDU(whole.astype(np.uint16), header)
    mosaic.header["BAYERPAT"] = "GRBG"
    stream = io.BytesIO()
    mosaic.writeto(stream)
    goods = {
        "FITS 8": frame_bytes(np.clip(image / 8, 0, 255).astype(np.uint8)),
        "FITS 16": frame_bytes(short),
        "FITS 16 mosaic": stream.getvalue(),
        "FITS 32": frame_bytes(whole.astype(np.int32)),
        "FITS 64": frame_bytes(whole.astype(np.int64)),
        "FITS -32": frame_bytes(image.astype(np.float32), {**WCS, **SIP}),
        "FITS -64": frame_bytes(image),
        "FITS colour": frame_bytes(cube.astype(np.float32)),
        "RICE": packed(short, "RICE_1"),
        "RICE tiles": packed(whole.astype(np.int32), "RICE_1", tile_shape=(16, 32)),
        "RICE float": packed(image.astype(np.float32), "RICE_1", quantize_level=16.0),
        "GZIP_1": packed(short, "GZIP_1"),
        "GZIP_2 float": packed(image.astype(np.float32), "GZIP_2", quantize_level=0.0),
        "GZIP_2 colour": packed(cube.astype(np.float32), "GZIP_2"),
        "HCOMPRESS": packed(whole.astype(np.int32), "HCOMPRESS_1", tile_shape=(32, 64)),
        "PLIO": packed(whole.astype(np.int32), "PLIO_1"),
        "MEF": written(table, fits.ImageHDU(image.astype(np.float32), header)),
        "MEF RICE": written(table, fits.CompImageHDU(short, header, compression_type="RICE_1")),
        "npy": saved(image.astype(np.float32)),
        "npy colour": saved(np.moveaxis(cube, 0, -1).astype(np.float32).copy()),
        "npy columns": saved(np.asfortranarray(whole.astype(np.uint16))),
    }
    packed_too = ("FITS 16", "FITS -32", "RICE", "npy")
    return goods | {f"{name} .gz": gzip.compress(goods[name], 1) for name in packed_too}


HUGE: Final = (0, 1, -1, 255, 32767, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63))


def spoilt(seed: int, goods: dict[str, bytes]) -> tuple[str, bytes]:
    """Return the kind and the bytes of an input, the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    name = chance.choice(sorted(goods))
    raw = goods[name]
    if name.endswith(".gz") and chance.random() < 0.6:
        return name, gzip.compress(_worse(chance, gzip.decompress(raw), goods), 1)
    return name, _worse(chance, raw, goods)


def _worse(chance: random.Random, raw: bytes, goods: dict[str, bytes]) -> bytes:
    from header_case import spoilt as spoilt_header

    if chance.random() < 0.35:  # its header alone, as tests/stress/fuzz_headers.py does
        raw = spoilt_header(chance.randrange(1 << 30), [raw])
    else:
        for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
            raw = chance.choice(WAYS)(chance, raw, goods)
    return raw[: 1 << 21]


def _bytes_changed(chance: random.Random, raw: bytes, _: dict[str, bytes]) -> bytes:
    changed = bytearray(raw)
    for _ in range(chance.choice((1, 2, 8, 64, 512))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(chance: random.Random, raw: bytes, _: dict[str, bytes]) -> bytes:
    return raw[: chance.randrange(len(raw) + 1)]


def _swapped(chance: random.Random, raw: bytes, _: dict[str, bytes]) -> bytes:
    size = chance.choice((8, 80, 512, 2880))
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    if len(parts) > 1:
        a, b = chance.randrange(len(parts)), chance.randrange(len(parts))
        parts[a], parts[b] = parts[b], parts[a]
    return b"".join(parts)


def _removed_or_doubled(chance: random.Random, raw: bytes, _: dict[str, bytes]) -> bytes:
    size, at = chance.choice((1, 8, 80, 2880)), chance.randrange(len(raw) + 1)
    return raw[:at] + raw[at + size :] if chance.random() < 0.5 else raw[:at] + raw[at : at + size] + raw[at:]


def _spliced(chance: random.Random, raw: bytes, goods: dict[str, bytes]) -> bytes:
    """Put a block or some cards of another input in."""
    other = goods[chance.choice(sorted(goods))]
    size = chance.choice((80, 80, 240, 2880))
    source, at = (chance.randrange(max(len(data) // 80, 1)) * 80 for data in (other, raw[: 4 * 2880]))
    return raw[:at] + other[source : source + size] + raw[at + size :]


def _huge_number(chance: random.Random, raw: bytes, _: dict[str, bytes]) -> bytes:
    """Put a telling number where an aligned one stands: sizes, descriptors, heads of streams."""
    size = chance.choice((2, 4, 4, 8))
    bits = chance.choice(HUGE) & ((1 << 8 * size) - 1)
    at = chance.randrange(max(len(raw) // size, 1)) * size
    return raw[:at] + bits.to_bytes(size, chance.choice(("big", "little"))) + raw[at + size :]


def _in_table(chance: random.Random, raw: bytes, goods: dict[str, bytes]) -> bytes:
    """Change the descriptors or the heap of a compressed image; anything else anywhere."""
    start = raw.find(b"ZIMAGE  =")
    end = raw.find(b"END" + b" " * 77, start) if start >= 0 else -1
    if end < 0:
        return _huge_number(chance, raw, goods)
    table = -(-(end + 80) // 2880) * 2880
    reach = chance.choice((64, 800, len(raw)))
    part = raw[table : table + reach]
    way = chance.choice((_bytes_changed, _huge_number, _huge_number, _swapped))
    return raw[:table] + way(chance, part, goods) + raw[table + reach :] if part else raw


WAYS: Final[tuple[Callable[[random.Random, bytes, dict[str, bytes]], bytes], ...]] = (
    _bytes_changed, _bytes_changed, _cut, _swapped, _removed_or_doubled, _spliced, _huge_number, _in_table, _in_table,
)  # fmt: skip


# ------------------------------------------------------------------------------------------- what is done with them


class Run:
    """What a process needs to handle inputs: good frames, and where it writes."""

    def __init__(self, place: Path) -> None:
        import numpy as np

        from zemosaic_phase3.io.open_frame import open_source
        from zemosaic_phase3.pipeline.scan import scan_frame
        from zemosaic_phase3.spec import RegisterSpec

        self.register = RegisterSpec()
        self.path = place / "input"
        self.goods = []
        for seed in (1, 2, 3):
            self.goods.append(place / f"good{seed}.npy")
            np.save(self.goods[-1], sky(seed).astype(np.float32))
        self.reference = scan_frame(open_source(self.goods[0]), self.register, find_stars=True)

    def handle(self, raw: bytes, *, whole: bool) -> None:
        """Do with one input whatever a run does; FrameError where it cannot be used."""
        from zemosaic_phase3.io.open_frame import open_source
        from zemosaic_phase3.pipeline.scan import scan_frame
        from zemosaic_phase3.pipeline.stack_files import stack_files
        from zemosaic_phase3.pipeline.tile_header import cards_of_reference
        from zemosaic_phase3.registration.match import register_stars
        from zemosaic_phase3.registration.wcs import register_wcs
        from zemosaic_phase3.spec import StackSpec

        self.path.write_bytes(raw)
        if whole:
            tile = stack_files([*self.goods, self.path], stack=StackSpec(), device="cpu", workers=1, memory="3GB")
            if tile.report.n_used < 3:
                raise RuntimeError(f"only {tile.report.n_used} frames were used: {tile.report.dropped}")
        source = open_source(self.path)
        if source.height * source.width > 4_000_000:
            source.read_rows(source.height // 2, source.height // 2 + 1)
            return
        header, wcs = source.read_header(), source.wcs()
        scan = scan_frame(source, self.register, find_stars=True)
        if self.reference.stars is not None and scan.stars is not None:
            register_stars(self.reference.stars, scan.stars, (source.height, source.width), self.register)
        if wcs is not None:
            register_wcs(wcs, wcs, source.shape, self.register)
        cards_of_reference(header, wcs, source.shape)


def peak_bytes() -> int:
    """Return the highest resident memory since it was last reset, bytes; that of the process where none can be."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def reset_peak() -> int:
    """Forget the highest memory so far; returns what is resident now, bytes."""
    with open("/proc/self/clear_refs", "w") as stream:  # noqa: PTH123 - a file of the system
        stream.write("5")
    return peak_bytes()


def work(first: int, count: int, seconds: float) -> None:
    """Handle inputs one after the other and say, line by line, how each of them ended."""
    import resource

    from zemosaic_phase3.errors import FrameError

    faulthandler.enable()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    goods = originals()

    def too_long(*_: object) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, too_long)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        for raw in goods.values():  # compiles and imports what has to be
            run.handle(raw, whole=False)
        run.handle(goods["FITS 16"], whole=True)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        for seed in range(first, first + count):
            kind, raw = spoilt(seed, goods)
            say({"begin": seed, "kind": kind})
            before = reset_peak()
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                run.handle(raw, whole=seed % STACKED == 0)
                end = "used"
            except FrameError:
                end = "left out with a reason"
            except TooLongError:
                end = f"longer than {seconds:g} s"
            except BaseException as exc:  # noqa: BLE001 - to be counted
                end = uncaught(exc)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            more = peak_bytes() - before
            if end in GOOD and more > 10 * len(raw) + SPARE:
                end = f"memory: {more >> 20} MB"
            say({"end": end, "seed": seed, "kind": kind, "seconds": time.process_time() - began})


def say(words: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------- many processes


@dataclass(frozen=True)
class End:
    """How one input ended."""

    seed: int
    kind: str
    end: str
    seconds: float


def handled(first: int, count: int, seconds: float) -> Iterator[End]:
    """Have a process handle inputs; one that dies is one input's end, and another goes on."""
    seed, last = first, first + count
    while seed < last:
        command = [sys.executable, str(HERE), "--work", str(seed), str(last - seed), str(seconds)]
        begun, kind, heard, killed = -1, "", [time.monotonic() + COMPILING], [False]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            done = threading.Event()

            def watch(process: subprocess.Popen[str] = process, done: threading.Event = done,
                      heard: list[float] = heard, killed: list[bool] = killed) -> None:  # fmt: skip
                while not done.wait(1.0):
                    if time.monotonic() - heard[0] > PATIENCE:
                        killed[0] = True
                        process.kill()
                        return

            threading.Thread(target=watch, daemon=True).start()
            for line in process.stdout:
                heard[0] = time.monotonic()
                told = json.loads(line)
                if "begin" in told:
                    begun, kind = told["begin"], told["kind"]
                else:
                    yield End(told["seed"], told["kind"], told["end"], told["seconds"])
                    seed = told["seed"] + 1
            done.set()
            code = process.wait()
        if code != 0:
            if begun < seed:
                raise RuntimeError(f"a process ended with {code} before its first input; run --work {seed} 1 5")
            yield End(begun, kind, "hangs beyond signals" if killed[0] else f"the process died, {code}", 0.0)
            seed = begun + 1


def fuzz(inputs: int, first: int, processes: int, seconds: float, told: Callable[[End], None]) -> None:
    """Handle inputs in several processes; ``told`` is called from one thread at a time."""
    for end in handled(first, 1, seconds):  # alone: it compiles what the others will load
        told(end)
    batches: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    size = max(1, min(BATCH, -(-inputs // processes)))
    for start in range(first + 1, first + inputs, size):
        batches.put((start, min(size, first + inputs - start)))
    lock, faults = threading.Lock(), []

    def worker() -> None:
        try:
            while True:
                try:
                    start, count = batches.get_nowait()
                except queue.Empty:
                    return
                for end in handled(start, count, seconds):
                    with lock:
                        told(end)
        except Exception as exc:  # noqa: BLE001 - raised below
            faults.append(exc)

    threads = [threading.Thread(target=worker) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


COLUMNS: Final = ("used", "left out", "uncaught", "died", "longer", "memory")


def column_of(end: str) -> str:
    """Return the column of the table an end is counted in."""
    starts = {"used": "used", "left": "left out", "unca": "uncaught", "the ": "died"}
    return starts.get(end[:4], "longer" if end[:4] in ("hang", "long") else "memory")


def report(ends: list[End], took: float, command: str) -> str:
    """Return what is written into ``benchmarks/results/fuzz.md``."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "astropy", "numba"))
    counts = collections.Counter((end.kind, column_of(end.end)) for end in ends)
    bad = collections.defaultdict(list)
    for end in ends:
        if end.end not in GOOD:
            bad[end.end].append(end.seed)
    slowest = max(ends, key=lambda end: end.seconds)
    total = [sum(counts[kind, column] for kind in {end.kind for end in ends}) for column in COLUMNS]
    lines = [
        "# Spoilt inputs", "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`; {platform.system()}, {os.cpu_count()} cores, "
        f"python {platform.python_version()}, {versions}", "",
        f"{len(ends)} inputs in {took:.0f} s; the slowest took {slowest.seconds:.2f} s (seed {slowest.seed}). One in "
        f"{STACKED} was stacked whole with three good frames.", "",
        f"| kind | {' | '.join(COLUMNS)} |", "|---" + "|---:" * len(COLUMNS) + "|",
        *(
            f"| {kind} | {' | '.join(str(counts[kind, column]) for column in COLUMNS)} |"
            for kind in sorted({end.kind for end in ends})
        ),
        f"| all | {' | '.join(map(str, total))} |", "",
    ]  # fmt: skip
    lines += [f"- {end}: {len(seeds)}, seeds {', '.join(map(str, sorted(seeds)[:8]))}" for end, seeds in bad.items()]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Return 0 if every input was used or left out with a reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the processor, for one input")
    parser.add_argument("--first", type=int, default=1, help="seed of the first input")
    parser.add_argument("--output", type=Path, help="file for the table")
    parser.add_argument("--show", type=int, help="write the input of this seed to the standard output")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.show is not None:
        sys.stdout.buffer.write(spoilt(args.show, originals())[1])
        return 0
    if args.work:
        work(int(args.work[0]), int(args.work[1]), float(args.work[2]))
        return 0
    ends: list[End] = []
    began = time.monotonic()

    def told(end: End) -> None:
        ends.append(end)
        if end.end not in GOOD:
            sys.stderr.write(f"{end.seed} {end.kind}: {end.end}\n")
        if len(ends) % 5000 == 0:
            sys.stderr.write(f"{len(ends)} inputs, {time.monotonic() - began:.0f} s\n")

    fuzz(args.inputs, args.first, args.processes, args.seconds, told)
    options = f"--inputs {args.inputs} --processes {args.processes} --seconds {args.seconds:g} --first {args.first}"
    text = report(ends, time.monotonic() - began, f"python tests/stress/fuzz_inputs.py {options}")
    sys.stdout.write(text)
    if args.output is not None:
        args.output.write_text(text)
    return int(any(end.end not in GOOD for end in ends))


if __name__ == "__main__":
    sys.exit(main())
