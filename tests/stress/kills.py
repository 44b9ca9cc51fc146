"""Kill many stacks, and tell what is left: ``python tests/stress/kills.py [--runs N] [--output FILE]``.

Half of the kills come at random moments, more of them late in the run than early. The others come at each call to the
system by which the files are written, if there is strace. Fails if a file is damaged, or if a next run leaves something
behind.
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

from kill_case import NAMES, Kills  # noqa: E402 - found by the line above

from zemosaic_phase3 import __version__  # noqa: E402


def run(kills: Kills, runs: int, seed: int) -> None:
    """Kill ``runs`` stacks."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    kinds = (False, True) if shutil.which("strace") else ()
    steps = [(step, is_new) for is_new in kinds for step in kills.calls_of_writing(is_new=is_new)]
    chance.shuffle(steps)
    steps = steps[: runs // 2]
    for k in range(runs - len(steps)):
        share = max(chance.random(), chance.random())
        kills.at_moment(1.05 * share * kills.seconds, is_new=k % 3 == 2)
    for (call, number), is_new in steps:
        kills.at_call(call, number, is_new=is_new)


def table(kills: Kills) -> list[str]:
    """Return what became of the files, one line each way of killing."""
    head = ["kill -9", "runs", "killed", *NAMES, "runs that left a temporary file"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for how in sorted(kills.runs):
        states = []
        for name in NAMES:
            found = {state: n for (h, file, state), n in kills.counts.items() if (h, file) == (how, name)}
            states.append(", ".join(f"{found[state]} {state}" for state in sorted(found)))
        row = [how, kills.runs[how], kills.killed[how], *states, kills.with_strays[how]]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return lines


def report(kills: Kills, command: str, n_strays: int, n_left: int) -> str:
    """Return what is written into ``benchmarks/results/kills.md``."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "numba", "astropy"))
    lines = [
        "# Stacks that are killed",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `{command}`: 4 frames of 96x128x3, image, maps, preview and "
        f"report; {platform.system()}, zemosaic-phase3 {__version__}, python {platform.python_version()}, {versions}; "
        f"an undisturbed run takes {kills.seconds:.1f} s",
        "",
        *table(kills),
        "",
        f"{sum(kills.killed.values())} runs killed, {len(kills.damaged())} kinds of damage; {n_strays} temporary files "
        f"left, {n_left} of them after the next run (their times set back two hours).",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Return 0 if everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=40, help="kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(Path(folder) / "runs")
        run(kills, args.runs, args.seed)
        n_strays = len(list(kills.strays.iterdir()))
        left = kills.left_by_next_run()
    text = report(kills, f"python tests/stress/kills.py --runs {args.runs} --seed {args.seed}", n_strays, len(left))
    sys.stdout.write(text)
    if args.output is not None:
        args.output.write_text(text)
    return int(bool(kills.damaged() or left))


if __name__ == "__main__":
    sys.exit(main())
