"""What a run says at its end: the summary, the report as JSON."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.app.doctor import versions
from zemosaic_phase3.app.printable import broken_lines, printable
from zemosaic_phase3.io.atomic_write import written_whole
from zemosaic_phase3.pipeline.group import FrameRow
from zemosaic_phase3.pipeline.outputs import frames_columns
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.pipeline.tile_facts import TileFacts, facts_of
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.report.words import device_text
from zemosaic_phase3.runtime.limits import memory_text

if TYPE_CHECKING:
    from rich.console import Console

UNITS: Final[Mapping[str, str]] = {
    "plan": "frames",
    "tiles": "frames",
    "mosaic": "tiles",
    "simulate": "frames",
    "calibrate": "frames",
    "measure": "frames",
    "register": "frames",
    "stack": "slabs",
    "make": "frames",
    "bench": "methods",
}
REPORT_SCHEMA: Final = 2  # of the JSON report; grows when an entry goes or means something else
STAGES: Final = ("open", "calibrate", "measure", "register", "stack", "finish", "write", "preview", "report")
CHANNEL_NAMES: Final[Mapping[int, Sequence[str]]] = {1: ("grey",), 3: ("red", "green", "blue")}


def print_facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    """Print labels and texts; an empty label continues the one above.

    On a terminal long lines are broken between words, and what follows is indented; a word, such as a path without
    blanks, stays in one piece. Elsewhere each fact is one line, which can be searched for. Control characters of a file
    name are shown as escapes.
    """
    from rich.text import Text

    width = max((len(label) for label, _ in facts), default=0)
    for label, text in facts:
        for k, line in enumerate(broken_lines(printable(text), console, width + 2)):
            head = label if k == 0 else ""
            console.print(Text.assemble((head.ljust(width), "bold"), "  ", line), soft_wrap=True)


def print_columns(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column is text, folded where there is no room; the others are right-justified."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, title in enumerate(head):
        table.add_column(title, justify="right" if k else "left", no_wrap=k > 0, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)


DROPPED_LINES: Final = 12  # of the summary, at most; --json has all
DROPPED_ALONE: Final = 3  # frames with one reason that are still listed one by one


def dropped_lines(dropped: Sequence[tuple[str, str]]) -> list[str]:
    """Say which frames were left out and why; many with the same reason, but for its numbers, share a line.

    Parameters
    ----------
    dropped : sequence of (name, reason)

    Returns
    -------
    list of str
        At most ``DROPPED_LINES`` and one that counts the rest.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, reason in dropped:
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "#", reason), []).append((name, reason))
    lines: list[str] = []
    told = 0
    for members in sorted(groups.values(), key=len, reverse=True):
        for name, reason in members if len(members) <= DROPPED_ALONE else members[:1]:
            if len(lines) == DROPPED_LINES:
                return [*lines, f"... and {len(dropped) - told} more; --json lists all"]
            alone = len(members) <= DROPPED_ALONE
            lines.append(
                f"{Path(name).name}: {reason}"
                if alone
                else f"{len(members)} frames, such as {Path(name).name}: {reason}"
            )
            told += 1 if alone else len(members)
    return lines


def _number(value: float, digits: int = 3) -> str:
    return f"{value:#.{digits}g}" if math.isfinite(value) else "-"


def _noise_factor(report: TileReport) -> list[float]:
    """Return how much calmer the stack is than a typical frame at the same levels."""
    pairs = zip(report.noise_typical, report.noise_after, strict=True)
    return [before / after if after > 0 else math.nan for before, after in pairs]


def print_summary(console: Console, tile: Tile, files: Mapping[str, Path | None]) -> None:
    """Print what became of a run.

    Parameters
    ----------
    console : Console
    tile : Tile
    files : mapping of str to Path or None
        What was written, by label ("output", "preview"); None is left out.
    """
    report = tile.report
    channels = CHANNEL_NAMES.get(len(report.noise_after), [str(c) for c in range(len(report.noise_after))])
    factor = f"factor ({report.n_used} frames)"
    rows = {
        "noise of one frame, ADU": report.noise_typical,
        "noise of the stack, ADU": report.noise_after,
        factor: _noise_factor(report),
        "factor expected of these weights": report.factor_expected,
        "rejected low, %": report.rejected_low_percent,
        "rejected high, %": report.rejected_high_percent,
    }
    print_columns(console, ["", *channels], [[label, *map(_number, values)] for label, values in rows.items()])
    facts = observation_lines(facts_of(tile))
    facts.append(("frames", f"{report.n_used} of {report.n_input} used; reference {Path(report.reference).name}"))
    facts += _labelled("calibration", report.calibration)
    facts += _labelled("left out", dropped_lines(report.dropped))
    if report.all_rejected_pixels:
        facts.append(("rejected", f"{report.all_rejected_pixels} pixels lost every sample and show their median"))
    facts += _labelled("note", report.warnings)
    facts.append(("device", device_text(report)))
    check = report.self_check
    if check is not None and check.pixels:
        facts.append(("self-check", f"{check.pixels} pixels made again agree ({check.seconds:.2f} s)"))
    in_order = sorted(
        report.seconds.items(), key=lambda item: STAGES.index(item[0]) if item[0] in STAGES else len(STAGES)
    )
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in in_order if seconds >= 0.05)
    facts.append(("time", f"{sum(report.seconds.values()):.1f} s" + (f" ({stages})" if stages else "")))
    facts.append(("memory", f"peak {memory_text(report.peak_rss_bytes)}, slabs of {report.rows_per_slab} rows"))
    facts += [(label, str(path)) for label, path in files.items() if path is not None]
    facts += _labelled("journal", journal_lines(report))
    print_facts(console, facts)


def observation_lines(facts: TileFacts) -> list[tuple[str, str]]:
    """Say what a tile shows, how long and when it was exposed, how large and how sharp it is."""
    lines = []
    shown = [facts.object, f"filter {facts.filter}" if facts.filter else ""]
    if any(shown):
        lines.append(("object", ", ".join(part for part in shown if part)))
    if facts.total_exposure_s > 0:
        count = "1 exposure" if facts.exposures == 1 else f"{facts.exposures} exposures"
        one = f", levels of {facts.exposure_s:g} s" if facts.exposure_s > 0 else ""
        lines.append(("exposure", f"{_duration(facts.total_exposure_s)} in {count}{one}"))
    if facts.date_obs:
        until = f" to {facts.date_end}" if facts.date_end else ""
        lines.append(("taken", f"{facts.date_obs}{until} UTC"))
    image = f"{facts.width} x {facts.height} pixels"
    if facts.scale_arcsec > 0:
        image += f', {facts.scale_arcsec:#.4g}"/px' + (" by FOCALLEN" if facts.scale_from == "FOCALLEN" else "")
    if facts.fwhm_px > 0:
        image += f", FWHM {facts.fwhm_px:.2f} px"
        image += f' = {facts.fwhm_px * facts.scale_arcsec:#.3g}"' if facts.scale_arcsec > 0 else ""
    lines.append(("image", image))
    return lines


def _duration(seconds: float) -> str:
    """Return a time in seconds, and in minutes or hours where those are easier to grasp."""
    if seconds < 120:
        return f"{seconds:.6g} s"
    minutes = round(seconds / 60)
    return f"{seconds:.8g} s ({minutes} min)" if minutes < 120 else f"{seconds:.10g} s ({seconds / 3600:.1f} h)"


def journal_lines(report: TileReport) -> list[str]:
    """Say what a run took from its journal, and where that is."""
    resumed = report.resumed
    if not resumed.journal:
        return []
    known = [
        f"{count} {what}"
        for count, what in (
            (resumed.measured, "frames were measured before"),
            (resumed.registered, "registered before"),
            (resumed.rows, "rows stacked before"),
        )
        if count
    ]
    path = Path(resumed.journal)
    size = path.stat().st_size if path.exists() else 0
    return [*([", ".join(known)] if known else []), f"{path} ({memory_text(size)}), for the next run"]


def _labelled(label: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(label if k == 0 else "", line) for k, line in enumerate(lines)]


def json_ready(value: Any) -> Any:
    """Return a value made of what JSON knows: NaN and infinities become None, arrays lists, paths text."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _frame_documents(rows: Sequence[FrameRow]) -> list[dict[str, Any]]:
    """Return the table FRAMES row by row; what is not known of a frame is None."""
    columns = frames_columns(rows)
    columns["TRANSFORM"] = np.reshape(columns["TRANSFORM"], (-1, 3, 3))
    table = []
    for k in range(len(rows)):
        row = {name.lower(): json_ready(values[k]) for name, values in columns.items()}
        table.append({name: None if _is_unknown(value) else value for name, value in row.items()})
    return table


def _is_unknown(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_unknown, value)))


def report_document(tile: Tile, files: Mapping[str, Path | None]) -> dict[str, Any]:
    """Return everything a run reports, ready for JSON: the report, files written, versions, one entry per input."""
    document = {
        "schema": REPORT_SCHEMA,
        **asdict(facts_of(tile)),
        **{label: None if path is None else os.fspath(path) for label, path in files.items()},
        **tile.report.as_dict(),
        "dropped": [{"name": name, "reason": reason} for name, reason in tile.report.dropped],
        "noise_factor": _noise_factor(tile.report),
        "frames": _frame_documents(tile.rows),
        "versions": versions(),
    }
    return dict(json_ready(document))


def json_text(document: Mapping[str, Any]) -> str:
    """Return strictly valid JSON, ASCII only, one line break at its end."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def write_text(text: str, path: Path) -> None:
    """Write a text file that appears complete or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    data = text.encode(errors="backslashreplace")
    with written_whole(path, len(data), overwrite=True) as stream:
        stream.write(data)
