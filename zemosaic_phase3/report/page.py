"""The page: one HTML file that holds all it shows and asks no network for anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from zemosaic_phase3 import __version__
from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.atomic_write import written_whole
from zemosaic_phase3.pipeline.outputs import check_output
from zemosaic_phase3.report import charts, pictures, words
from zemosaic_phase3.report.needs import require
from zemosaic_phase3.report.sky_marks import sky_marks
from zemosaic_phase3.report.story import Story, stem_of

TEMPLATE: Final = Path(__file__).with_name("page.html.j2")
STYLE: Final = Path(__file__).with_name("page.css")
OVER_TIME: Final = (
    ("FWHM", "Star width", "FWHM, px", False),
    ("ECCENTR", "Eccentricity", "0 = round", False),
    ("SKY", "Sky", "ADU", False),
    ("TRANSPAR", "Transparency", "reference = 1", False),
    ("WEIGHT", "Weight", "", True),
    ("REJECTED", "Rejected samples", "%", True),
)
"""Columns of FRAMES that are drawn over time, what they are called, their unit, and whether the axis begins at 0."""


@dataclass(frozen=True)
class Chart:
    """A chart, and in words what it shows."""

    svg: str
    told: str


def write_page(story: Story, folder: Path) -> Path:
    """Write the page of a tile into a folder, which is made where there is none, under the name of the tile's file.

    Returns
    -------
    Path
        The file, which appears complete or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    SpecError
        A package is missing.
    """
    data = page_text(story).encode(errors="backslashreplace")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be made ({exc.strerror}); choose another folder for the report") from exc
    path = page_path(folder, story.name)
    with written_whole(path, len(data), overwrite=True) as stream:
        stream.write(data)
    return path


def page_path(folder: Path, tile: Path | str) -> Path:
    """Return the file of the page of a tile."""
    return folder / f"{stem_of(str(tile))}.html"


def check_page(folder: Path, tile: Path | str, *, overwrite: bool) -> Path:
    """Refuse before the work starts a page that could not be written at its end; returns its file.

    Raises
    ------
    OutputError
        It exists and ``overwrite`` is False; the folder cannot be made, or is a file.
    SpecError
        A package is missing.
    """
    require("--report")
    if folder.is_dir():
        check_output(page_path(folder, tile), overwrite=overwrite)
    elif folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder}: is a file; --report names a folder")
    elif not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder}: folder {folder.parent} does not exist; create it first")
    return page_path(folder, tile)


def page_text(story: Story) -> str:
    """Return the page as HTML.

    Raises
    ------
    SpecError
        A package is missing.
    """
    require("the report")
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(style=STYLE.read_text(encoding="utf-8"), version=__version__, **_parts(story))


def _parts(story: Story) -> dict[str, Any]:
    """Return what the template sets."""
    report, facts, frames = story.report, story.facts, story.frames
    marks = sky_marks(facts, story.wcs)
    axis = None
    if frames is not None and len(frames["NAME"]):
        axis = charts.time_axis([str(text) for text in frames["DATE_OBS"]], np.asarray(frames["USED"], bool))
    order = np.argsort(axis.at, kind="stable") if axis is not None else np.empty(0, int)
    return {
        "title": words.headline(story),
        "subtitle": words.subtitle(facts),
        "file": story.name,
        "figures": words.key_figures(story),
        "masters": pictures.master_pictures(story),
        "marks": marks.flipped() if story.is_bottom_up else marks,
        "image_width": facts.width,
        "pair": pictures.one_and_all(story),
        "notes": report.warnings,
        "calibration": report.calibration,
        "charts": _over_time(story, axis) if axis is not None else [],
        "dropped": report.dropped,
        "reasons": words.reasons(report.dropped),
        "sheet": pictures.contact_sheet(report.dropped),
        "maps": pictures.maps_of(story),
        "noise": _noise(story, order),
        "noise_rows": words.noise_rows(report),
        "stages": words.stages(report),
        "seconds": sum(report.seconds.values()),
        "parameters": words.parameters(story),
        "options": words.all_options(story),
        "machine": words.machine(report),
        "command": words.command_text(report),
        "reference": Path(report.reference).name,
        "frame_head": words.FRAME_HEAD,
        "frame_lines": words.frame_lines(frames, order) if frames is not None else [],
        "n_frames": len(order),
        "report": report,
    }


def _over_time(story: Story, axis: charts.TimeAxis) -> list[Chart]:
    frames = story.frames
    if frames is None or not len(axis.at):
        return []
    used = np.asarray(frames["USED"], bool)
    reference = Path(story.report.reference).name
    places = [k for k, name in enumerate(frames["NAME"]) if Path(str(name)).name == reference and used[k]]
    found = []
    for column, title, unit, from_zero in OVER_TIME:
        values = words.per_frame(frames, column)
        if column == "WEIGHT":
            values = np.where(used, values, np.nan)
        known = values[used & np.isfinite(values)]
        if known.size == 0:
            continue
        svg = charts.frames_chart(
            axis, values, used, places[0] if places else -1, title=title, unit=unit, from_zero=from_zero
        )
        low, middle, high = (words.number(float(v)) for v in np.percentile(known, (0, 50, 100)))
        told = f"{title}{f', {unit}' if unit else ''}: median {middle}, from {low} to {high}, of {known.size} frames"
        found.append(Chart(svg, told))
    return found


def _noise(story: Story, order: np.ndarray) -> Chart | None:
    report = story.report
    factor = words.mean_factor(report)
    if not np.isfinite(factor):
        return None
    expected = words.expected_noise(story.frames, order)
    svg = charts.noise_chart(expected, 1.0 / factor, report.n_used)
    root = words.number(float(np.sqrt(report.n_used)))
    told = f"Noise over the number of frames: {report.n_used} frames make it {words.number(factor)} times less"
    told += f"; equal, independent frames would make it {root} times less"
    if expected.size:
        told += f", these with their weights {words.number(float(1.0 / expected[-1]))} times"
    return Chart(svg, told)
