"""A stack that is killed: at a random moment, or at one call to the system of its writing, and what is left of it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits
from places import ROOT

from zemosaic_phase3.io.atomic_write import FOREIGN_STRAY_SECONDS, TEMPORARY

NAMES = ("out.fits", "out.png", "out.json")
CALLS = ("write", "fsync", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "close")
PLAIN = ("--register", "none", "--normalize", "none", "--weight", "none", "--reject", "none")


@dataclass
class Kills:
    """Counts what became of the files of runs that were killed, ``(how, file, state)``, and keeps what they left."""

    folder: Path
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    with_strays: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Make the frames, an older result and the result to be, and time the run."""
        rng = np.random.default_rng(5)
        self.strays = self.folder / "strays"
        self.strays.mkdir(parents=True)
        for name, level in (("old", 900.0), ("new", 1000.0)):
            (self.folder / f"{name}_subs").mkdir()
            (self.folder / name).mkdir()
            for k in range(4):
                pixels = rng.normal(level, 20.0, (96, 128, 3)).astype(np.float32)
                np.save(self.folder / f"{name}_subs" / f"{k}.npy", pixels)
            began = time.monotonic()
            subprocess.run(self.command(name, self.folder / name), cwd=ROOT, check=True)
            self.seconds = time.monotonic() - began  # of the second run: the first one may compile
        self._new = self._pixels(self.folder / "new" / "out.fits")

    def command(self, kind: str, out: Path) -> list[str]:
        """Return the command line of a run; the files there are replaced."""
        order = ["stack", f"{self.folder / kind}_subs", "-o", f"{out}/out.fits", "--json", f"{out}/out.json", "--maps"]
        return [sys.executable, "-m", "zemosaic_phase3", *order, "--overwrite", "--quiet", "--no-resume", *PLAIN]

    def at_moment(self, seconds: float, *, is_new: bool) -> None:
        """Kill a run some seconds after its start."""
        out = self._fresh(is_new)
        with subprocess.Popen(self.command("new", out), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        self._look(f"at a random moment, {_before(is_new)}", out, process.returncode)

    def at_call(self, call: str, number: int, *, is_new: bool) -> None:
        """Kill a run at one of the calls to the system of its main thread."""
        out = self._fresh(is_new)
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        command = ["strace", "-f", "-o", os.devnull, *inject, *self.command("new", out)]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        self._look(f"at a {call}, {_before(is_new)}", out, done.returncode)

    def calls_of_writing(self, *, is_new: bool) -> list[tuple[str, int]]:
        """Return the calls to the system by which a run writes its files, each with its number in the main thread."""
        out, log = self._fresh(is_new), self.folder / "strace.log"
        wanted = ",".join(f"?{call}" for call in ("openat", *CALLS))
        command = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-y",
            "-o",
            str(log),
            "-e",
            f"trace={wanted}",
            *self.command("new", out),
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        lines = log.read_text(errors="replace").splitlines()
        main = lines[0].split()[0]
        seen: Counter[str] = Counter()
        found = []
        for line in lines:
            match = re.match(rf"{main} +(\w+)\(", line)
            if match is None:
                continue
            call = match[1]
            seen[call] += 1
            if call in CALLS and (TEMPORARY in line or (call == "fsync" and str(out) in line)):
                found.append((call, seen[call]))
        return found

    def left_by_next_run(self) -> list[str]:
        """Have one more run write where everything lies that the killed ones left; return what is still there."""
        long_ago = time.time() - 2 * FOREIGN_STRAY_SECONDS
        for path in self.strays.iterdir():
            os.utime(path, (long_ago, long_ago))
        subprocess.run(self.command("new", self.strays), cwd=ROOT, check=True)
        return sorted(path.name for path in self.strays.iterdir() if path.name not in NAMES)

    def damaged(self) -> list[tuple[str, str, str]]:
        """Return what is neither old, new nor absent."""
        return [key for key in self.counts if key[2] not in ("old", "new", "absent")]

    def _fresh(self, is_new: bool) -> Path:
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        if is_new:
            out.mkdir()
        else:
            shutil.copytree(self.folder / "old", out)
        return out

    def _look(self, how: str, out: Path, status: int) -> None:
        self.runs[how] += 1
        self.killed[how] += status == -signal.SIGKILL
        for name in NAMES:
            self.counts[how, name, self._state(out / name)] += 1
        strays = [path for path in out.iterdir() if path.name not in NAMES]
        self.with_strays[how] += bool(strays)
        for path in strays:
            path.rename(self.strays / path.name)

    def _state(self, path: Path) -> str:
        if not path.exists():
            return "absent"
        data = path.read_bytes()
        if data == (self.folder / "old" / path.name).read_bytes():
            return "old"
        try:
            if path.suffix == ".fits":
                is_new = self._pixels(path) == self._new
            elif path.suffix == ".json":
                is_new = json.loads(data)["n_used"] == 4
            else:
                is_new = data == (self.folder / "new" / path.name).read_bytes()
        except Exception as exc:  # noqa: BLE001 - whatever a reader says of a damaged file
            return f"damaged: {exc!r}"
        return "new" if is_new else "damaged"

    @staticmethod
    def _pixels(path: Path) -> list[tuple[str, bytes]]:
        """Return name and pixels of all units; a wrong checksum is a warning, and warnings are errors here."""
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # From memory: astropy leaves a damaged file open.
            with fits.open(io.BytesIO(path.read_bytes()), checksum=True) as hdus:
                return [(hdu.name, hdu.data.tobytes()) for hdu in hdus if hdu.name not in ("FRAMES", "RUN")]


def _before(is_new: bool) -> str:
    return "nothing there" if is_new else "older files there"
