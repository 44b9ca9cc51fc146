"""Time and size of the page of a stack, by its number of frames.

python benchmarks/bench_report.py > benchmarks/results/report.md
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from browser import open_browser, program

import zemosaic_phase3 as zp
from zemosaic_phase3.report.page import page_text
from zemosaic_phase3.report.story import Story, story_of
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

SESSION = SimulationSpec(n_frames=12)  # 1080 x 1920 pixels, colour


def with_frames(story: Story, n: int) -> Story:
    """The same tile, made of n frames over three nights, a fiftieth of them left out."""
    pick = np.arange(n) % len(story.frames["NAME"])
    frames = {name: values[pick] for name, values in story.frames.items()}
    rng = np.random.default_rng(0)
    frames["FWHM"], frames["ECCENTR"] = rng.normal(3.0, 0.2, n), rng.normal(0.4, 0.03, n)
    frames["SKY"] = frames["SKY"] + rng.normal(0.0, 20.0, (n, 1))
    minutes = np.arange(n) * 3 * 420 // n
    frames["DATE_OBS"] = np.array(
        [
            f"2025-01-{15 + m // 420:02d}T{17 + m % 420 // 60:02d}:{m % 60:02d}:{k % 60:02d}"
            for k, m in enumerate(minutes)
        ]
    )
    frames["USED"] = np.arange(n) % 50 != 7
    dropped = [(str(frames["NAME"][k]), f"FWHM {k} px") for k in np.flatnonzero(~frames["USED"])]
    frames["REASON"] = np.where(frames["USED"], "", "FWHM 9 px, limit 5 px")
    return replace(story, frames=frames, report=replace(story.report, n_input=n, dropped=dropped))


def main() -> None:
    print("# The page of a stack\n")
    names = ", ".join(f"{name} {version(name)}" for name in ("matplotlib", "jinja2", "pillow", "numpy"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {names}. 1920 x 1080, colour.")
    print("`python benchmarks/bench_report.py`; CPU seconds of one process, the second time (imports are 1 s more).\n")
    print("| frames | to make, CPU s | size, MB | elements | to load and lay out in Chromium, s |")
    print("|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        simulate(SESSION, folder)
        tile = zp.stack(folder, progress=False)
        story = story_of(tile, "m.fits")
        page_text(story)
        for n in (12, 200, 2000, 20_000):
            one = with_frames(story, n)
            start = time.process_time()
            text = page_text(one)
            seconds = time.process_time() - start
            page = Path(folder, "m.html")
            page.write_text(text, encoding="utf-8")
            shown, elements = float("nan"), 0
            if program() is not None:
                with open_browser() as browser:
                    browser.look(page, 1280)
                    start = time.perf_counter()
                    browser.look(page, 1280)
                    shown = time.perf_counter() - start
                    elements = browser.value_of("document.querySelectorAll('*').length")
            print(f"| {n} | {seconds:.2f} | {len(text.encode()) / 1e6:.2f} | {elements} | {shown:.2f} |")


if __name__ == "__main__":
    main()
