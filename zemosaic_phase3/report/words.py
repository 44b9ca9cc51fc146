"""The words and figures of the page: facts, noise, stages, parameters, frames, ready to be set."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from zemosaic_phase3.pipeline.tile_facts import TileFacts
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.report.pictures import kind_of
from zemosaic_phase3.report.sky_marks import duration
from zemosaic_phase3.report.story import Story
from zemosaic_phase3.runtime.limits import memory_text
from zemosaic_phase3.runtime.nvidia_card import has_nvidia_card
from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, SelectSpec, StackSpec

STAGES: Final[Mapping[str, str]] = {
    "open": "open the files", "calibrate": "calibrate", "measure": "measure frames", "register": "register frames",
    "stack": "reject and combine", "finish": "finish", "write": "write the tile", "preview": "write the preview",
}  # fmt: skip
COLOURS: Final[Mapping[int, tuple[str, ...]]] = {1: ("grey",), 3: ("red", "green", "blue")}
CPU_ASKED_FOR: Final = "the CPU was asked for"
MOST_ROWS: Final = 2000  # of the table of frames; beyond, those that were left out
MAIN: Final = (
    "reject", "kappa_low", "kappa_high", "spare_stars", "combine", "normalize", "weight", "interpolation",
)  # fmt: skip
"""Options that are shown whatever they are."""
GROUPS: Final[Mapping[str, str]] = {"register": "registration", "select": "selection", "calibration": "calibration"}


@dataclass(frozen=True)
class Stage:
    """One stage of the run: its seconds, and its share of the longest, percent."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class NoiseRow:
    """The noise of one colour: of a frame and of the stack, ADU; ``factor`` between them, ``share`` of sqrt(N), %."""

    colour: str
    frame: str
    stack: str
    factor: str
    share: str


@dataclass(frozen=True)
class FrameLine:
    """One row of the table of frames, as text."""

    name: str
    used: bool
    cells: tuple[str, ...]
    reason: str


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many digits; a dash where it is not known."""
    return f"{value:#.{digits}g}".rstrip(".") if math.isfinite(value) else "–"


def headline(story: Story) -> str:
    """Return what the page is called: the object, or the file."""
    return story.facts.object or story.name


def key_figures(story: Story) -> list[tuple[str, str, str]]:
    """Return what stands in large type: label, figure, and a line below it."""
    facts, report = story.facts, story.report
    found: list[tuple[str, str, str]] = []
    if facts.total_exposure_s > 0:
        each = f"{facts.exposures} × {facts.exposure_s:g} s" if facts.exposure_s > 0 else f"{facts.exposures} exposures"
        found.append(("total exposure", duration(facts.total_exposure_s), each))
    if report.n_used:
        left = report.n_input - report.n_used
        found.append(("frames", f"{report.n_used}", f"{left} left out" if left > 0 else "all of them"))
    factor = mean_factor(report)
    if math.isfinite(factor):
        share = 100.0 * factor / math.sqrt(report.n_used)
        found.append(("noise", f"÷ {number(factor)}", f"{share:.0f} % of √{report.n_used} = {_root(report.n_used)}"))
    if facts.fwhm_px > 0:
        sky = f"{facts.fwhm_px * facts.scale_arcsec:.1f}″ at {facts.scale_arcsec:#.3g}″/px"
        found.append(("star width", f"{facts.fwhm_px:.2f} px", sky if facts.scale_arcsec > 0 else "FWHM"))
    seconds = sum(report.seconds.values())
    if seconds > 0:
        found.append(("made in", duration(seconds), f"on the {report.device.upper()}"))
    return found


def _root(n: int) -> str:
    return number(math.sqrt(n))


def subtitle(facts: TileFacts) -> str:
    """Return one line: filter, dates, size and scale."""
    parts = [
        f"filter {facts.filter}" if facts.filter else "",
        _dates(facts),
        f"{facts.width} × {facts.height} px",
        f"{facts.scale_arcsec:#.4g}″/px" if facts.scale_arcsec > 0 else "",
    ]
    return " · ".join(part for part in parts if part)


def _dates(facts: TileFacts) -> str:
    start, end = facts.date_obs[:16].replace("T", " "), facts.date_end[:16].replace("T", " ")
    if not start:
        return ""
    end = end[11:] if end[:10] == start[:10] else end
    return f"{start} to {end} UTC" if end and end != start[11:] else f"{start} UTC"


def factors(report: TileReport) -> list[float]:
    """Return for each channel how much calmer the stack is than a typical frame at its levels."""
    pairs = zip(report.noise_typical, report.noise_after, strict=False)
    return [before / after if after > 0 else math.nan for before, after in pairs]


def mean_factor(report: TileReport) -> float:
    """Return the mean of :func:`factors`; nan where none is known."""
    known = [value for value in factors(report) if math.isfinite(value)]
    return float(np.mean(known)) if known and report.n_used > 0 else math.nan


def noise_rows(report: TileReport) -> list[NoiseRow]:
    """Return the noise of each colour."""
    names = COLOURS.get(len(report.noise_after), tuple(map(str, range(len(report.noise_after)))))
    typical = report.noise_typical or [math.nan] * len(names)
    rows = []
    for name, before, after in zip(names, typical, report.noise_after, strict=False):
        factor = before / after if after > 0 else math.nan
        share = 100.0 * factor / math.sqrt(report.n_used) if report.n_used else math.nan
        rows.append(NoiseRow(name, number(before), number(after), number(factor), number(share, 3)))
    return rows


def expected_noise(frames: Mapping[str, np.ndarray] | None, order: np.ndarray) -> np.ndarray:
    """Return what the noise would be as one frame after the other joins, were they independent: typical frame = 1.

    Parameters
    ----------
    frames : mapping or None
        Columns of FRAMES.
    order : ndarray (N,) of int
        Places of frames in the order in which they join; those not used, or not measured, are passed over.

    Returns
    -------
    ndarray (n,)
        sqrt(sum w^2 s^2) / sum w, s each frame's noise at the tile's levels over the median of them; empty where it is
        not known. Mean of the channels.
    """
    if frames is None:
        return np.empty(0)
    used = np.asarray(frames["USED"], bool)[order]
    weight, scale, noise = (np.reshape(frames[key], (len(used), -1))[order] for key in ("WEIGHT", "SCALE", "NOISE"))
    good = used & np.isfinite(weight * scale * noise).all(axis=1) & (weight > 0).all(axis=1)
    if not good.any():
        return np.empty(0)
    weight, sigma = weight[good], np.abs(scale[good]) * noise[good]
    sigma = sigma / np.median(sigma, axis=0)
    together = np.sqrt(np.cumsum((weight * sigma) ** 2, axis=0)) / np.cumsum(weight, axis=0)
    return np.asarray(together.mean(axis=1))


def stages(report: TileReport) -> list[Stage]:
    """Return the stages of the run in their order."""
    names = [*STAGES, *(name for name in report.seconds if name not in STAGES)]
    timed = [(name, report.seconds[name]) for name in names if report.seconds.get(name, 0.0) >= 0.005]
    longest = max((seconds for _, seconds in timed), default=1.0)
    return [Stage(STAGES.get(name, name), seconds, 100.0 * seconds / longest) for name, seconds in timed]


def parameters(story: Story) -> list[tuple[str, str]]:
    """Return what was done: methods, and every option that is not as it is by default."""
    usual: dict[str, Any] = {**asdict(StackSpec()), "normalize": "", "weight": ""}
    methods = story.methods
    changed = {name: value for name, value in methods.items() if name not in MAIN and not _same(value, usual.get(name))}
    found = {name: methods[name] for name in MAIN if name in methods} | changed
    for key, defaults in (("register", RegisterSpec()), ("select", SelectSpec()), ("calibration", CalibrationSpec())):
        inner = story.report.spec.get(key, {})
        plain = asdict(defaults)
        found |= {name: value for name, value in inner.items() if not _same(value, plain.get(name))}
    return _options(found)


def _same(value: Any, default: Any) -> bool:
    """Return whether a value that a table held is the default: there one item and a list of one are alike."""
    return value == default or value == (list(default) if isinstance(default, tuple) else default)


def all_options(story: Story) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what was asked for, by group: name and value of each option."""
    own = {name: value for name, value in story.report.spec.items() if not isinstance(value, Mapping)}
    groups = [("rejection and combination", _options(own))]
    for key, name in GROUPS.items():
        inner = story.report.spec.get(key)
        if isinstance(inner, Mapping) and inner:
            groups.append((name, _options(inner)))
    return [(name, options) for name, options in groups if options]


def _options(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _value(value)) for name, value in given.items() if value not in (None, "", (), [])]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def machine(report: TileReport) -> list[tuple[str, str]]:
    """Return where and how it was computed."""
    facts = []
    if report.device:
        facts.append(("device", device_text(report)))
    if report.gpu_attempts:
        facts.append(("attempts on the GPU", str(report.gpu_attempts)))
    if report.rows_per_slab:
        facts.append(("slabs", f"{report.rows_per_slab} rows"))
    if report.peak_rss_bytes:
        facts.append(("memory", f"peak {memory_text(report.peak_rss_bytes)}"))
    check = report.self_check
    if check is not None and check.pixels:
        facts.append(("self-check", f"{check.pixels} pixels made again by plain definitions agree"))
    known = [
        f"{count} {what}"
        for count, what in (
            (report.resumed.measured, "frames measured"),
            (report.resumed.registered, "frames registered"),
            (report.resumed.rows, "rows stacked"),
        )
        if count
    ]
    if known:
        facts.append(("from an earlier run", ", ".join(known)))
    if report.started:
        facts.append(("started", report.started.replace("T", " ").replace("Z", " UTC")))
    return facts


def device_text(report: TileReport) -> str:
    """Return the device, and why that one: without a card there is nothing to explain, and nothing failed."""
    was_wanted = report.device == "gpu" or report.gpu_attempts or report.device_reason == CPU_ASKED_FOR
    reason = report.device_reason if was_wanted or has_nvidia_card() else ""
    return report.device + (f" ({reason})" if reason else "")


def command_text(report: TileReport) -> str:
    """Return the command line, as a shell takes it; "" where the library was called."""
    return shlex.join(report.command)


def reasons(dropped: Sequence[tuple[str, str]]) -> list[tuple[int, str]]:
    """Return how many frames were left out for each reason, most first; numbers in it are those of the first frame."""
    found: dict[str, tuple[int, str]] = {}
    for _, reason in dropped:
        count, first = found.get(kind_of(reason), (0, reason))
        found[kind_of(reason)] = (count + 1, first)
    return sorted(found.values(), key=lambda item: -item[0])


def per_frame(frames: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return a column of FRAMES, the mean of its channels."""
    values = np.asarray(frames[name], np.float64)
    return values.mean(axis=1) if values.ndim == 2 else values


FRAME_HEAD: Final = ("start, UTC", "stars", "FWHM, px", "eccentr.", "sky", "transp.", "weight", "rejected, %")


def frame_lines(frames: Mapping[str, np.ndarray], order: np.ndarray) -> list[FrameLine]:
    """Return the table of frames; of very many only those that were left out."""
    used = np.asarray(frames["USED"], bool)
    chosen = order if len(order) <= MOST_ROWS else order[~used[order]][:MOST_ROWS]
    columns = [per_frame(frames, name) for name in ("FWHM", "ECCENTR", "SKY", "TRANSPAR", "WEIGHT", "REJECTED")]
    lines = []
    for k in map(int, chosen):
        start = str(frames["DATE_OBS"][k])[:19].replace("T", " ")
        cells = (start or "–", str(int(frames["STARS"][k])), *(number(float(column[k])) for column in columns))
        lines.append(FrameLine(Path(str(frames["NAME"][k])).name, bool(used[k]), cells, str(frames["REASON"][k])))
    return lines
