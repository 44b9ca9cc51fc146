"""A stack that is killed and gone on with: what the journal has when it dies, and what the next run makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from kill_case import Kills
from places import ROOT

from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

# Keeps every slab however short the stack is, cuts it into slabs of eight rows, and writes a line for each step that
# is finished, at once, so that it is known how far a killed run was.
CHILD = """
import os, sys
from pathlib import Path
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.pipeline import kept_rows
from zemosaic_phase3.pipeline.stack_files import stack_files

kept_rows.FIRST_SECONDS = kept_rows.NEXT_SECONDS = 0.0
cpu.SLAB_BYTES = 1
subs, out, log = sys.argv[1:4]
steps = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def tell(stage, done, total):
    os.write(steps, f"{stage} {done} {total}\\n".encode())
tile = stack_files([subs], Path(out) / "out.fits", device="cpu", workers=int(sys.argv[4]), overwrite=True, maps=True,
                   progress=tell)
resumed = tile.report.resumed
os.write(steps, f"resumed {resumed.measured} {resumed.registered} {resumed.rows}\\n".encode())
"""
SPEC = SimulationSpec(n_frames=10, height=96, width=128, n_stars=50, bayer="GRBG", seed=8)
ROWS_OF_SLAB = 8
BESIDE = tuple(f"out.fits.journal{end}" for end in ("", "-wal", "-shm", "-journal"))


@dataclass
class ResumedKills:
    """Kills runs and goes on with them; what was wrong is in ``faults``, what was done again in ``again``."""

    folder: Path
    workers: int = 2
    faults: list[str] = field(default_factory=list)
    again: Counter[str] = field(default_factory=Counter)
    most_again: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    def __post_init__(self) -> None:
        """Make the frames and the undisturbed result, and time the run."""
        simulate(SPEC, self.folder / "subs")
        for name in ("warm", "right"):  # the first run may compile
            (self.folder / name).mkdir()
            began = time.monotonic()
            self._run(self.folder / name)
            self.seconds = time.monotonic() - began
        self._right = Kills._pixels(self.folder / "right" / "out.fits")  # noqa: SLF001 - the same judge

    def at_moment(self, seconds: float) -> None:
        """Kill a run some seconds after its start, then go on with it."""
        out = self._fresh()
        with subprocess.Popen(self._command(out), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        self._go_on(out, "at a random moment", process.returncode)

    def at_call(self, call: str, number: int) -> None:
        """Kill a run at one of the calls to the system of any of its threads, then go on with it."""
        out = self._fresh()
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        command = ["strace", "-f", "-o", os.devnull, *inject, *self._command(out)]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        self._go_on(out, f"at a {call}", done.returncode)

    def calls(self, names: tuple[str, ...]) -> list[tuple[str, int]]:
        """Return the calls to the system of an undisturbed run, each with its number in its thread."""
        out, log = self._fresh(), self.folder / "strace.log"
        wanted = ",".join(f"?{name}" for name in names)
        command = ["strace", "-f", "--seccomp-bpf", "-o", str(log), "-e", f"trace={wanted}", *self._command(out)]
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        seen: Counter[tuple[str, str]] = Counter()
        for line in log.read_text(errors="replace").splitlines():
            if match := re.match(r"(\d+) +(\w+)\(", line):
                seen[match[1], match[2]] += 1
        return [(name, number + 1) for (_, name), count in sorted(seen.items()) for number in range(count)]

    def _command(self, out: Path) -> list[str]:
        places = [str(self.folder / "subs"), str(out), str(self.folder / f"{out.name}.log"), str(self.workers)]
        return [sys.executable, "-c", CHILD, *places]

    def _run(self, out: Path) -> list[list[str]]:
        log = self.folder / f"{out.name}.log"
        log.unlink(missing_ok=True)
        subprocess.run(self._command(out), cwd=ROOT, check=True)
        return [line.split() for line in log.read_text().splitlines()]

    def _fresh(self) -> Path:
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (self.folder / "out.log").unlink(missing_ok=True)
        return out

    def _go_on(self, out: Path, how: str, status: int) -> None:
        self.runs += 1
        self.killed[how] += status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        log = self.folder / "out.log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        was_done = any(line[0] == "resumed" for line in lines)
        finished = Counter(line[0] for line in lines)
        unexpected = [path.name for path in out.iterdir() if path.name not in ("out.fits", *BESIDE)]
        long_ago = time.time() - 7200
        for name in unexpected:
            if not name.startswith(".zemosaic-"):
                self.faults.append(f"{how}: {name} was left")
            os.utime(out / name, (long_ago, long_ago))
        if (out / "out.fits").exists() and Kills._pixels(out / "out.fits") != self._right:  # noqa: SLF001
            self.faults.append(f"{how}: the file that was there is another one")
        try:
            steps = self._run(out)
        except subprocess.CalledProcessError as exc:
            self.faults.append(f"{how}: the next run failed with {exc.returncode}")
            return
        if Kills._pixels(out / "out.fits") != self._right:  # noqa: SLF001
            self.faults.append(f"{how}: the result of the next run differs")
        left = [path.name for path in out.iterdir() if path.name not in ("out.fits", "out.fits.journal")]
        if left:
            self.faults.append(f"{how}: the next run leaves {left}")
        measured, registered, rows = map(int, steps[-1][1:])
        if not was_done and not finished["write"]:
            known = {"measure": measured, "register": registered, "stack": rows // ROWS_OF_SLAB}
            # The reference counts as registered, and is never kept.
            for stage, count in known.items():
                lost = finished[stage] - (stage == "register" and finished[stage] > 0) - count
                self.again[stage] += max(0, lost)
                self.most_again[stage] = max(self.most_again[stage], lost)

    def sound(self) -> bool:
        """Return whether the journal that is there now can be read, with no other copy of what it holds."""
        db = sqlite3.connect(self.folder / "out" / "out.fits.journal")
        fine = db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()
        return fine

    def summary(self) -> str:
        """Return the counts as JSON, for a log."""
        return json.dumps({"runs": self.runs, "killed": self.killed, "again": self.again, "most": self.most_again})
