"""Groups of frames that are stacked each on their own: by filter, exposure, gain and so on."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.io.frame_kind import FrameKind, canonical_filter, canonical_name
from zemosaic_phase3.io.open_frame import open_source, split_unit
from zemosaic_phase3.io.pixel_files import PixelFile
from zemosaic_phase3.pipeline.frame_choice import (
    Choice,
    all_images,
    choose_frames,
    exposure_classes,
    facts_of,
)
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.pipeline.input_list import Inputs

GROUP_KEYS: Final = ("filter", "exposure", "gain", "object", "instrument", "binning")
MOST_GROUPS: Final = 200  # more are a mistake: a card that differs in every frame

_LABELS: Final[Mapping[str, Callable[[FrameKind], str]]] = {
    "filter": lambda f: f.filter or "nofilter",
    "gain": lambda f: f"gain{f.gain:g}" if math.isfinite(f.gain) else "nogain",
    "object": lambda f: f.object or "noobject",
    "instrument": lambda f: f.instrument or "nocamera",
    "binning": lambda f: f"bin{f.binning or 1}",
}
_SAME: Final[Mapping[str, Callable[[str], str]]] = {
    "filter": canonical_filter, "object": canonical_name, "instrument": canonical_name,
}  # fmt: skip


@dataclass(frozen=True)
class FrameGroup:
    """Frames that agree, and their name, which is added to that of the output."""

    label: str
    inputs: Inputs

    def output(self, path: Path) -> Path:
        """Return the file of this group beside the one that was named; two endings, such as .fits.fz, stay together."""
        first = Path(path.stem)
        suffix = path.suffix if path.suffix != ".fz" else first.suffix + path.suffix
        return path.with_name(f"{path.name.removesuffix(suffix)}_{self.label}{suffix}")


def group_keys(text: str) -> tuple[str, ...]:
    """Return the keys of a list such as "filter,exposure".

    Raises
    ------
    SpecError
        One is not known.
    """
    keys = tuple(dict.fromkeys(key.strip().lower() for key in text.split(",") if key.strip()))
    wrong = [key for key in keys if key not in GROUP_KEYS]
    if wrong or not keys:
        raise SpecError(
            f"frames cannot be grouped by {', '.join(wrong) or 'nothing'}; choose of: {', '.join(GROUP_KEYS)}"
        )
    return keys


def frame_groups(
    listed: Inputs, keys: tuple[str, ...], *, bayer: str = "auto", filter: str | None = None
) -> tuple[list[FrameGroup], list[str]]:
    """Sort the frames of a run into groups that agree in what was asked for.

    Calibration frames, finished stacks among single exposures and second copies are in none, as in one stack.

    Parameters
    ----------
    listed : Inputs
        Of :func:`pipeline.input_list.list_inputs`.
    keys : tuple of str
        Of ``GROUP_KEYS``.
    bayer : str
        As for the stack.
    filter : str or None
        Only frames of this filter are in a group.

    Returns
    -------
    groups : list of FrameGroup
        In the order of their first frames.
    notes : list of str
        Inputs that are in no group, with the reason, one line each, and what else is to be said.

    Raises
    ------
    NoFramesError
        No frame is left to be grouped, or there are more than ``MOST_GROUPS`` groups.
    """
    opener = partial(open_source, bayer=bayer)
    by_name: dict[str, object] = {}

    def open_known(descriptor: object) -> object:
        source = opener(descriptor)
        by_name.setdefault(source.name, descriptor)
        return source

    group = open_group(
        listed.frames, open_known, further=partial(all_images, opener=opener),  # type: ignore[arg-type]
        choose=partial(choose_frames, choice=Choice(listed.named, filter, any_filter=True)), any_shape=True,
    )  # fmt: skip
    group.require_some("grouped")
    facts = {i: facts_of(group, i) for i in group.usable}
    several = {path for row in group.rows for path, unit in [split_unit(row.name)] if unit is not None}
    exposures = exposure_classes([f.exposure for f in facts.values()])
    members: dict[tuple[str, ...], list[object]] = {}
    labels: dict[tuple[str, ...], str] = {}
    for i, known in facts.items():
        texts = [_label(known, key, exposures) for key in keys]
        key = tuple(_SAME.get(name, str)(text) for name, text in zip(keys, texts, strict=True))
        members.setdefault(key, []).append(_alone(group, i, several, by_name))
        labels.setdefault(key, "_".join(map(safe_text, texts)))
    if len(members) > MOST_GROUPS:
        raise NoFramesError(f"{len(members)} groups by {', '.join(keys)} are more than {MOST_GROUPS}; group by less")
    taken: Counter[str] = Counter()
    groups = []
    for key, frames in members.items():
        taken[labels[key].lower()] += 1
        again = taken[labels[key].lower()]
        label = labels[key] if again == 1 else f"{labels[key]}-{again}"
        groups.append(FrameGroup(label, Inputs(frames, [], listed.named)))
    left = [f"{Path(row.name).name}: {row.reason}" for row in group.rows if not row.used]
    return groups, [*listed.notes, *left]


def _alone(group: Group, i: int, several: set[str], by_name: Mapping[str, object]) -> object:
    """Return what names one frame alone: of a file with several images its unit too."""
    name, source = group.rows[i].name, group.source(i)
    if name in several and isinstance(source, PixelFile):
        return f"{name}[{source.place.unit}]"
    return by_name.get(name, name)


def _label(facts: FrameKind, key: str, exposures: Mapping[float, float]) -> str:
    if key == "exposure":
        return f"{exposures[facts.exposure]:g}s" if facts.exposure in exposures else "noexposure"
    return _LABELS[key](facts)


def safe_text(text: str) -> str:
    """Return a text as a part of the name of a file."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:40] or "x"
