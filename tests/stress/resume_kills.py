"""Kill many stacks and go on with each: ``python tests/stress/resume_kills.py [--runs N] [--output FILE]``.

Half of the kills come at random moments, the others at calls to the system of any thread: every kind by which files
and journal are written, each at a random one of its calls. Fails if a file is damaged, or if a next run fails, differs
by a bit from an undisturbed one or leaves something behind. What was done again is counted: how much that is depends on
how far the journal, which is written beside the work, lags behind it.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from resume_case import ResumedKills  # noqa: E402 - found by the line above

from zemosaic_phase3 import __version__  # noqa: E402

CALLS = ("write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "link", "linkat", "unlink", "ftruncate")


def run(kills: ResumedKills, runs: int, seed: int) -> None:
    """Kill ``runs`` stacks and go on with them."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    steps: list[tuple[str, int]] = []
    if shutil.which("strace"):
        calls = kills.calls(CALLS)
        names = sorted({name for name, _ in calls})
        numbers = {name: sorted({number for found, number in calls if found == name}) for name in names}
        steps = [(name, chance.choice(numbers[name])) for name in (names * runs)[: runs // 2]]
    for _ in range(runs - len(steps)):
        kills.at_moment(1.05 * max(chance.random(), 0.3 * chance.random()) * kills.seconds)
    for name, number in steps:
        kills.at_call(name, number)
        sys.stderr.write(f"{kills.summary()}\n")


def report(kills: ResumedKills, command: str) -> str:
    """Return what is written into ``benchmarks/results/resume.md``."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "numba", "astropy"))
    lines = [
        "# Stacks that are killed and gone on with",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`: 10 mosaics of 96x128, registered, normalised, "
        f"weighted, rejected, slabs of 8 rows, all of them kept; {platform.system()}, zemosaic-phase3 {__version__}, "
        f"python {platform.python_version()}, {versions}; an undisturbed run takes {kills.seconds:.1f} s",
        "",
        "| kill -9 | killed before they ended |",
        "|---|---|",
        *[f"| {how} | {kills.killed[how]} |" for how in sorted(kills.killed)],
        "",
        f"{kills.runs} runs, each gone on with. Damaged, different in a bit, or left behind: {len(kills.faults)}. Done "
        f"again at most, of what a killed run had finished: {kills.most_again['measure']} frames measured, "
        f"{kills.most_again['register']} registered ({kills.workers} threads), {kills.most_again['stack']} slabs.",
    ]
    return "\n".join([*lines, *kills.faults]) + "\n"


def main() -> int:
    """Return 0 if everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=40, help="kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = ResumedKills(Path(folder))
        run(kills, args.runs, args.seed)
        fine = kills.sound()
    text = report(kills, f"python tests/stress/resume_kills.py --runs {args.runs} --seed {args.seed}")
    sys.stdout.write(text)
    if args.output is not None:
        args.output.write_text(text)
    return int(bool(kills.faults) or not fine)


if __name__ == "__main__":
    sys.exit(main())
