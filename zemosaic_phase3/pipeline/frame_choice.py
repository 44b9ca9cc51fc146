"""Which of the frames that were opened belong to the stack: decided once, by what their headers and names say.

Finished stacks, darks, flats and bias frames among lights, frames of another filter and second copies are left out,
each with its reason; what merely differs (object, gain, exposure, camera, binning) is said. The rules are in
``docs/frames.md``.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.frame_kind import FrameKind, canonical_filter, canonical_name, kind_of
from zemosaic_phase3.io.further_images import further_images
from zemosaic_phase3.io.inputs import real_path
from zemosaic_phase3.io.open_frame import open_source, split_unit
from zemosaic_phase3.io.same_pixels import same_exposures
from zemosaic_phase3.pipeline.group import FrameRow, Group, frame_fault

MUCH_REJECTED_PERCENT: Final = 25.0  # of a frame's samples; good frames lose less than one
SAME_EXPOSURE: Final = 1.01  # times; 9.99 s and 10 s are one exposure
MOST_NAMED: Final = 4  # values or frames in one line
TWO_UNEQUAL: Final = 4.0  # weights of two frames: one always outweighs the other


@dataclass(frozen=True)
class Choice:
    """What a user said of the choice.

    ``named``: real paths of the files named themselves, which stay whatever they are; ``filter``: the one to be
    stacked, None: that of most frames; ``any_filter``: all of them, and what differs is not told, because groups are
    made of them.
    """

    named: frozenset[Path] = frozenset()
    filter: str | None = None
    any_filter: bool = False


def all_images(descriptor: object, first: FrameSource, opener: Callable[[Any], FrameSource] = open_source) -> tuple[
    list[FrameSource], list[str]
]:  # fmt: skip
    """Return the frames of the file that a descriptor names, the first of them opened already, and what is to be said.

    Raises
    ------
    FrameError
        The file can no longer be read.
    """
    if not isinstance(descriptor, str | os.PathLike):
        return [first], []
    path = os.fspath(descriptor)
    if split_unit(path)[1] is not None:
        return [first], []
    further = further_images(first)
    return [first, *(opener(f"{path}[{unit}]") for unit in further.frames)], further.notes


def choose_frames(group: Group, choice: Choice) -> None:
    """Leave out the frames of a group that do not belong to the stack; fills the rows' facts and the group's notes.

    Raises
    ------
    NoFramesError
        No frame has the filter that was asked for.
    """
    for i in group.usable:
        row = group.rows[i]
        try:
            row.facts = kind_of(group.source(i))
        except Exception as exc:  # noqa: BLE001 - a wall: what goes wrong in one frame is that frame's reason
            row.drop(frame_fault(exc, row.name).reason)
    group.notes[:] = _together(group.notes)
    _tell_further(group)
    stays = _stays(group, choice)
    _drop_copies(group, stays)
    _drop_calibration(group, stays)
    _drop_stacks(group, stays)
    _drop_put_aside(group, stays)
    if choice.filter is not None:
        _keep_filter(group, choice.filter)
    elif not choice.any_filter:
        _drop_other_filters(group, stays)
    _tell_named(group, stays)
    if choice.any_filter:
        return
    group.notes += differences([facts_of(group, i) for i in group.usable])


def facts_of(group: Group, i: int) -> FrameKind:
    """Return what is known of a frame."""
    return group.rows[i].facts or FrameKind()


def _stays(group: Group, choice: Choice) -> Callable[[int], bool]:
    """Return what tells whether a frame was named itself, as a file or as the reference."""

    def stays(i: int) -> bool:
        path = Path(split_unit(group.rows[i].name)[0])
        return i == group.reference or (bool(choice.named) and real_path(path) in choice.named)

    return stays


def _tell_named(group: Group, stays: Callable[[int], bool]) -> None:
    """Say which frames are stacked although they are of another kind, because somebody named them."""
    kinds = Counter(facts_of(group, i).kind for i in group.usable)
    if kinds["light"] + kinds["unknown"] == 0 or kinds["stack"] > kinds["light"] + kinds["unknown"]:
        return
    odd = [i for i in group.usable if facts_of(group, i).kind not in ("light", "unknown") and stays(i)]
    if odd:
        told = [f"{Path(group.rows[i].name).name} ({_what(facts_of(group, i))})" for i in odd[:MOST_NAMED]]
        more = ", ..." if len(odd) > MOST_NAMED else ""
        group.notes.append(f"stacked with the others because named: {', '.join(told)}{more}")


def _what(facts: FrameKind) -> str:
    if facts.kind != "stack":
        return f"a {facts.kind} frame"
    return f"a finished stack of {facts.count}" if facts.count > 1 else "a finished stack"


def leave_out(row: FrameRow, reason: str) -> None:
    """Leave a frame out that was never meant to be stacked here, which is no failure."""
    row.drop(reason)
    row.meant = False


def _together(notes: Sequence[str]) -> list[str]:
    """Let notes that say the same of several files share a line."""
    alike: dict[str, list[str]] = {}
    for note in notes:
        name, _, text = note.partition(": ")
        alike.setdefault(text, []).append(name)
    return [
        f"{names[0]}: {text}" if len(names) == 1 else f"{len(names)} files such as {names[0]}: {text}"
        for text, names in alike.items()
    ]


def _tell_further(group: Group) -> None:
    files = Counter(path for row in group.rows for path, unit in [split_unit(row.name)] if unit is not None)
    whole = {row.name for row in group.rows}
    files = Counter({path: n for path, n in files.items() if path in whole})  # not those named with their unit
    if files:
        path, n = files.most_common(1)[0]
        several = f"{len(files)} files hold" if len(files) > 1 else f"{Path(path).name} holds"
        second = next(Path(row.name).name for row in group.rows if row.name.startswith(f"{path}["))
        group.notes.append(
            f"{several} up to {n + 1} images, and each is a frame: {Path(path).name}, {second}"
            f"{', ...' if n > 1 else ''}; to stack some of them alone, name them so"
        )


def _drop_copies(group: Group, stays: Callable[[int], bool]) -> None:
    """Let an exposure count once. Of equal files the one that was named stays, else the one with the shortest name."""
    sources = {i: group.source(i) for i in group.usable}
    for members in same_exposures(sources, {i: facts_of(group, i).start for i in sources}):
        best = min(members, key=lambda i: (i != group.reference, not stays(i), len(group.rows[i].name), i))
        twin = Path(group.rows[best].name)
        for i in members:
            if i != best:
                other = Path(group.rows[i].name)
                shown = twin.name if twin.parent == other.parent else str(twin)
                leave_out(group.rows[i], f"holds the same pixels as {shown}; an exposure counts once")


def _drop_calibration(group: Group, stays: Callable[[int], bool]) -> None:
    """Leave out darks, flats and bias frames among lights; without lights they are stacked, one kind at a time."""
    kinds = Counter(facts_of(group, i).kind for i in group.usable)
    of_calibration = {i for i in group.usable if facts_of(group, i).is_calibration}
    if not of_calibration:
        return
    if len(of_calibration) < len(group.usable):
        for i in sorted(of_calibration):
            if not stays(i):
                facts = facts_of(group, i)
                leave_out(group.rows[i], f"{_a_frame(facts)} and no light; it is not stacked with lights")
        return
    kind = kinds.most_common(1)[0][0]
    group.notes.append(f"the frames are {kind} frames ({kinds[kind]}), no lights; they are stacked as they are")
    for i in sorted(of_calibration):
        if facts_of(group, i).kind != kind and not stays(i):
            leave_out(group.rows[i], f"{_a_frame(facts_of(group, i))}, and most are {kind} frames; stack it on its own")


def _a_frame(facts: FrameKind) -> str:
    return f"it is a {facts.kind} frame ({facts.because})"


def _drop_stacks(group: Group, stays: Callable[[int], bool]) -> None:
    """Leave out finished stacks among single exposures; where stacks are in the majority, they are the frames."""
    stacks = [i for i in group.usable if facts_of(group, i).kind == "stack"]
    singles = len(group.usable) - len(stacks)
    if not stacks or not singles:
        return
    if len(stacks) > singles:
        group.notes.append(
            f"{len(stacks)} finished stacks and {singles} single {'exposure' if singles == 1 else 'exposures'} are "
            "stacked together; leave out what should not count"
        )
        return
    for i in stacks:
        if not stays(i):
            facts = facts_of(group, i)
            of = f"of {facts.count} exposures " if facts.count > 1 else ""
            leave_out(
                group.rows[i],
                f"it is a finished stack {of}({facts.because}) among single exposures; name the file itself, beside "
                "its folder, to stack it all the same",
            )


def _drop_put_aside(group: Group, stays: Callable[[int], bool]) -> None:
    """Leave out snapshots and what the telescope gave up, where there are other frames."""
    aside = [i for i in group.usable if facts_of(group, i).aside]
    if not aside:
        return
    if len(aside) == len(group.usable):
        few = "1 frame" if len(aside) == 1 else f"all {len(aside)} frames"
        group.notes.append(f"{few}: {facts_of(group, aside[0]).aside}; stacked, as there are no others")
        return
    for i in aside:
        if not stays(i):
            leave_out(
                group.rows[i], f"{facts_of(group, i).aside}; name the file itself, beside its folder, to stack it"
            )


def _keep_filter(group: Group, wanted: str) -> None:
    """Leave out the frames of other filters than the one that was asked for."""
    names = {canonical_filter(wanted), wanted.strip()}
    lower = {name.lower() for name in names}
    found: Counter[str] = Counter()
    others = []
    for i in group.usable:
        name = facts_of(group, i).filter
        if canonical_filter(name) not in names:
            others.append(i)
            found[name or "none"] += 1
    if others and len(others) == len(group.usable):  # perhaps it is only spelt in another case
        others = [i for i in others if canonical_filter(facts_of(group, i).filter).lower() not in lower]
        if len(others) == len(group.usable):
            raise NoFramesError(f"no frame has the filter {wanted!r}; their filters are: {_listed(found)}")
    for i in others:
        name = facts_of(group, i).filter
        leave_out(group.rows[i], f"its filter is {name or 'not known'}, and --filter asks for {wanted}")


def _drop_other_filters(group: Group, stays: Callable[[int], bool]) -> None:
    """Leave out other filters than that of most frames (of the reference, where one is named); unknown ones stay.

    Of filters with equally many frames the one that was exposed longer is taken, then the first.
    """
    filters = {i: canonical_filter(facts_of(group, i).filter) for i in group.usable}
    counts = Counter(name for name in filters.values() if name)
    if len(counts) < 2:
        return
    spelt = {name: facts_of(group, i).filter for i, name in reversed(filters.items())}
    longest = {
        name: sum(e for i, f in filters.items() if f == name and (e := facts_of(group, i).exposure) > 0.0)
        for name in counts
    }
    order = list(counts)
    wanted = filters.get(group.reference) or max(order, key=lambda n: (counts[n], longest[n], -order.index(n)))
    told = _listed(Counter({spelt[name]: n for name, n in counts.items()}))
    left = [i for i, name in filters.items() if name not in ("", wanted) and not stays(i)]
    for i in left:
        own = facts_of(group, i).filter
        group.rows[i].drop(f"its filter is {own}, and {spelt[wanted]} is stacked; use --filter {_quoted(own)} for it")
    kept = "they are stacked together, as they were named" if not left else f"{spelt[wanted]} is stacked"
    group.notes.append(
        f"{len(counts)} filters: {told}; {kept}. --filter NAME chooses one, --group-by filter stacks each"
    )


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name


def _listed(counts: Counter[str]) -> str:
    shown = [f"{name} ({n})" for name, n in counts.most_common(MOST_NAMED)]
    return ", ".join([*shown, "..."] if len(counts) > MOST_NAMED else shown)


def differences(facts: Sequence[FrameKind]) -> list[str]:
    """Return a line for each of object, gain, exposure, camera and binning in which frames of one stack differ."""
    notes = []
    tails: Mapping[str, tuple[str, Callable[[FrameKind], str], str]] = {
        "objects": ("OBJECT", lambda f: f.object, "frames of another field will not register"),
        "cameras": ("INSTRUME", lambda f: f.instrument, "--group-by instrument stacks each"),
        "binnings": ("XBINNING", lambda f: f.binning, "--group-by binning stacks each"),
    }
    for plural, (key, of, tail) in tails.items():
        spelt: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for text in filter(None, map(of, facts)):
            counts[spelt.setdefault(canonical_name(text), text)] += 1
        if len(counts) > 1:
            notes.append(f"{len(counts)} {plural} ({key}): {_listed(counts)}; {tail}")
    gains = Counter(f"{f.gain:g}" for f in facts if math.isfinite(f.gain))
    if len(gains) > 1:
        notes.append(f"{len(gains)} gains (GAIN): {_listed(gains)}; levels are matched, --group-by gain stacks each")
    times = exposure_classes([f.exposure for f in facts if f.kind != "stack"])
    if len(set(times.values())) > 1:
        counts = Counter(f"{times[f.exposure]:g} s" for f in facts if f.exposure in times)
        notes.append(f"{len(counts)} exposure times: {_listed(counts)}; levels are matched, weights follow the noise")
    return notes


def exposure_classes(exposures: Sequence[float]) -> dict[float, float]:
    """Return for each exposure time the one it counts as, seconds: times that differ by 1 % are one."""
    classes: dict[float, float] = {}
    first = 0.0
    for exposure in sorted({e for e in exposures if e > 0.0 and math.isfinite(e)}):
        if not first or exposure > SAME_EXPOSURE * first:
            first = exposure
        classes[exposure] = first
    return classes


def remarks_on_result(rows: Sequence[FrameRow]) -> list[str]:
    """Say of the finished stack where one frame decides it alone, and which frames lost much to rejection."""
    used = [row for row in rows if row.used]
    notes = []
    weights = np.array([np.mean(row.weight) if row.weight else math.nan for row in used])
    if len(used) > 1 and np.all(np.isfinite(weights)):
        top = int(np.argmax(weights))
        rest = float(weights.sum() - weights[top])
        if weights[top] > rest * (TWO_UNEQUAL if len(used) == 2 else 1.0):
            others = "the other one" if len(used) == 2 else f"the {len(used) - 1} others together"
            facts = used[top].facts
            what = f" (a stack of {facts.count})" if facts is not None and facts.count > 1 else ""
            notes.append(
                f"{Path(used[top].name).name}{what} outweighs {others} ({weights[top]:.3g} against {rest:.3g}): "
                "the result is nearly that frame"
            )
    lost = sorted(
        (row for row in used if row.rejected_percent > MUCH_REJECTED_PERCENT), key=lambda r: -r.rejected_percent
    )
    if lost:
        shown = ", ".join(f"{Path(row.name).name} ({row.rejected_percent:.0f} %)" for row in lost[:MOST_NAMED])
        more = ", ..." if len(lost) > MOST_NAMED else ""
        many = "a frame" if len(lost) == 1 else f"{len(lost)} frames"
        notes.append(
            f"{many} lost more than {MUCH_REJECTED_PERCENT:g} % of the samples to rejection: {shown}{more}; "
            "look at them, or leave them out"
        )
    return notes
