"""Charts of the page: drawn by matplotlib as SVG, recoloured by the page's style sheet, so that they follow its theme.

Points are strokes of no length with round ends: a path of two thousand is one element of some kilobytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, USED, LEFT_OUT, MARKED = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
STYLES: Final[Mapping[str, str]] = {
    INK: "var(--ink)", FAINT: "var(--line)", USED: "var(--used)", LEFT_OUT: "var(--out)", MARKED: "var(--mark)",
}  # fmt: skip
"""Colours that are drawn, and what the page makes of them."""
SIZE_IN: Final = (5.4, 2.9)  # inches of 72 units: nearly the pixels that a chart gets on a page
NOISE_IN: Final = (5.8, 3.1)
NIGHT_HOURS: Final = 6.0  # without a frame: another night
LONGEST_NIGHT_HOURS: Final = 16.0  # what is drawn along a clock
MOST_POINTS: Final = 3000  # drawn one by one; of more the middle and the spread
COLUMNS: Final = 300  # in which those are gathered
NIGHTS_NAMED: Final = 5
ROOM: Final = 0.25  # beyond what frames that were used have, of its range
SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none", "svg.hashsalt": "zemosaic-phase3", "path.simplify": False, "font.size": 11.0,
    "font.family": "sans-serif", "axes.linewidth": 0.8, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.unicode_minus": True,
}  # fmt: skip


@dataclass(frozen=True)
class TimeAxis:
    """Where each frame stands: ``at (N,)`` hours of a clock, or places in the order of time.

    ``label`` below the axis; ``nights``: where another night begins, and its date.
    """

    at: np.ndarray
    label: str
    nights: tuple[tuple[float, str], ...] = ()
    is_clock: bool = False


def time_axis(dates: Sequence[str], used: np.ndarray) -> TimeAxis:
    """Return where frames stand: along the clock in one night, in the order of time over several, else as given.

    Parameters
    ----------
    dates : sequence of str
        Starts of the exposures, ISO 8601, UTC; "" is not known. Where it is known of all frames used, one of which it
        is not has no place (nan).
    used : ndarray (N,) bool
    """
    moments = np.array([_seconds(text) for text in dates])
    known = np.isfinite(moments)
    if not known[used].all() or known.sum() < 2:
        return TimeAxis(np.arange(1.0, len(moments) + 1.0), "frame, in the order given")
    order = np.argsort(moments, kind="stable")[: known.sum()]
    first = moments[known].min()
    hours = (moments - first) / 3600.0
    if 0 < hours[known].max() <= LONGEST_NIGHT_HOURS:
        return TimeAxis((moments - first // 86400.0 * 86400.0) / 3600.0, "UTC", is_clock=True)
    place = np.full(len(moments), np.nan)
    place[order] = np.arange(1.0, len(order) + 1.0)
    gaps = np.flatnonzero(np.diff(hours[order]) > NIGHT_HOURS) + 1
    nights = [(0.5, dates[order[0]][:10])] + [(float(k) + 0.5, dates[order[k]][:10]) for k in gaps]
    return TimeAxis(place, "frame, in the order of time", tuple(nights))


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return float("nan")


def frames_chart(
    axis: TimeAxis, values: np.ndarray, used: np.ndarray, reference: int, *, title: str, unit: str, from_zero: bool
) -> str:
    """Draw a figure of all frames over time as SVG.

    Parameters
    ----------
    axis : TimeAxis
    values : ndarray (N,)
        nan = not known. What lies far beyond the frames that were used stands at the edge.
    used : ndarray (N,) bool
    reference : int
        Its place; -1: none.
    title, unit : str
        What is drawn.
    from_zero : bool
        The axis begins at zero.
    """
    low, high = _limits(values[used], from_zero=from_zero)
    shown = np.clip(values, low, high)
    with _drawing(title, unit) as drawn:
        ax = drawn.axes
        if np.isfinite(values).sum() > MOST_POINTS:
            _spread(ax, axis.at, np.where(used, shown, np.nan))
        else:
            _points(
                ax, axis.at[used], shown[used], USED, 4.2 if len(values) <= 150 else 3.2 if len(values) <= 600 else 2.2
            )
        left_out = np.flatnonzero(~used & np.isfinite(shown + axis.at))[:MOST_POINTS]
        _crosses(ax, axis.at[left_out], shown[left_out])
        if reference >= 0 and np.isfinite(shown[reference]):
            ax.plot(
                axis.at[reference], shown[reference], "o", markersize=8, markerfacecolor="none",
                markeredgecolor=MARKED, markeredgewidth=1.6,
            )  # fmt: skip
        ax.set_ylim(low, high)
        _show_time(ax, axis)
    return drawn.svg


def _limits(values: np.ndarray, *, from_zero: bool) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(known, (0.5, 99.5)))
    low, high = min(low, 0.0) if from_zero else low, high
    room = ROOM * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if from_zero and low >= 0 else low - room), high + room


def _points(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, width: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    known = np.isfinite(y)
    if not known.any():
        return
    places = np.repeat(np.column_stack([x[known], y[known]]), 2, axis=0)
    codes = np.tile([Path.MOVETO, Path.LINETO], int(known.sum()))
    ax.add_patch(PathPatch(Path(places, codes), facecolor="none", edgecolor=colour, linewidth=width, capstyle="round"))
    ax.update_datalim(places)


def _crosses(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw frames that were left out: another shape, as not everybody sees the other colour."""
    ax.plot(x, y, "x", color=LEFT_OUT, markersize=5.5, markeredgewidth=1.4, linestyle="none", clip_on=False)


def _spread(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw the median of very many frames, and the range of eight tenths of them."""
    edges = np.linspace(np.nanmin(x), np.nanmax(x), COLUMNS + 1)
    column = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, COLUMNS - 1)
    gathered = [y[(column == k) & np.isfinite(y)] for k in range(COLUMNS)]
    some = np.array([k for k, part in enumerate(gathered) if part.size], int)
    if some.size == 0:
        return
    low, middle, high = np.array([np.percentile(gathered[k], (10, 50, 90)) for k in some]).T
    at = 0.5 * (edges[some] + edges[some + 1])
    ax.fill_between(at, low, high, color=USED, alpha=0.3, linewidth=0)
    ax.plot(at, middle, color=USED, linewidth=1.2)


def _show_time(ax: Axes, axis: TimeAxis) -> None:
    at = axis.at[np.isfinite(axis.at)]
    span = float(np.ptp(at)) or 1.0
    ax.set_xlim(at.min() - 0.02 * span, at.max() + 0.02 * span)
    ax.set_xlabel(axis.label)
    if axis.is_clock:
        ax.xaxis.set_major_formatter(lambda hours, _: _clock(hours))
        ax.xaxis.set_major_locator(_clock_ticks(at))
    else:
        ax.locator_params(axis="x", nbins=6, integer=True)
    for start, _ in axis.nights[1:]:
        ax.axvline(start, color=FAINT, linewidth=1.0)
    step = -(-len(axis.nights) // NIGHTS_NAMED) if axis.nights else 1
    for start, date in axis.nights[::step]:
        ax.annotate(
            date[5:], (start, 1.0), xycoords=("data", "axes fraction"), xytext=(2, -2), textcoords="offset points",
            fontsize=9, va="top",
        )  # fmt: skip


def _clock_ticks(at: np.ndarray) -> Any:
    from matplotlib.ticker import FixedLocator

    span = float(np.ptp(at))
    steps = (1 / 60, 2 / 60, 5 / 60, 10 / 60, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
    step = next((s for s in steps if span / s <= 6), steps[-1])
    return FixedLocator([float(v) for v in np.arange(np.ceil(at.min() / step), at.max() / step + 1e-9) * step])


def _clock(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def noise_chart(expected: np.ndarray, measured: float, n_used: int) -> str:
    """Draw the noise against the square-root law as SVG.

    Parameters
    ----------
    expected : ndarray (n,)
        What the frames promise with their own noise and weights, as one after the other joins; noise of a typical
        frame = 1. Empty: not known.
    measured : float
        Noise of the stack over that of a typical frame; nan: not known.
    n_used : int
        Frames of the stack.
    """
    from matplotlib.ticker import LogLocator

    with _drawing("", "noise, one frame = 1", size=NOISE_IN) as drawn:
        ax = drawn.axes
        n = np.geomspace(1.0, max(n_used, 2), 100)
        ax.plot(n, 1.0 / np.sqrt(n), color=INK, linewidth=1.2, dashes=(5, 3))
        if expected.size:
            at = np.unique(np.round(np.geomspace(1, expected.size, 200)).astype(int))
            ax.plot(at, expected[at - 1], color=USED, linewidth=2.0)
        if np.isfinite(measured):
            ax.plot(n_used, measured, "D", color=MARKED, markersize=9, clip_on=False, zorder=5)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.grid(visible=True, axis="both", which="major")
        for side in (ax.xaxis, ax.yaxis):
            side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            side.set_major_formatter(lambda value, _: f"{value:g}")
            side.set_minor_formatter(lambda *_: "")
        ax.minorticks_off()
        ax.set_xlabel("frames stacked")
    return drawn.svg


class _drawing:  # noqa: N801 - used as a context, such as open()
    """A chart in the making; ``svg`` when the block has ended."""

    def __init__(self, title: str, unit: str, size: tuple[float, float] = SIZE_IN) -> None:
        self._title, self._unit, self._size = title, unit, size
        self.svg = ""

    def __enter__(self) -> _drawing:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._settings = matplotlib.rc_context(SETTINGS)
        self._settings.__enter__()
        self.figure = Figure(figsize=self._size, layout="constrained")
        FigureCanvasSVG(self.figure)
        self.axes = self.figure.add_subplot()
        self.axes.set_title(self._title, fontsize=12, fontweight="bold", loc="left", pad=9)
        self.axes.set_title(self._unit, fontsize=10, loc="right", pad=9)
        self.axes.tick_params(length=3)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.svg = themed_svg(self.figure)
        finally:
            self._settings.__exit__(None, None, None)


def themed_svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element for a page: its colours are the page's, its size is the place's."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' (?:width|height)="[0-9.]+pt"', "", svg)
    svg = re.sub(r'font-family: [^;"]*;?', "", svg)
    svg = re.sub(r'font: ((?:[a-z0-9]+ )*)([0-9.]+)px [^;"]*', _font, svg)
    svg = re.sub(r"M (\S+) (\S+) \nL \1 \2 ?\n?", _dot, svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), svg)  # not the texts
    for drawn, shown in STYLES.items():
        svg = svg.replace(drawn, shown)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _font(found: re.Match[str]) -> str:
    weight = "; font-weight: 600" if "700" in found[1] or "bold" in found[1] else ""
    return f"font-size: {found[2]}px{weight}"


def _dot(found: re.Match[str]) -> str:
    return f"M{float(found[1]):.1f} {float(found[2]):.1f}h0"
