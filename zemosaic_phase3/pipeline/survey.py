"""What a run would stack, from names and headers alone: nothing is measured."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from zemosaic_phase3.io.frame_kind import FrameKind, canonical_filter, canonical_name
from zemosaic_phase3.io.moments import moment
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.frame_choice import Choice, all_images, choose_frames, exposure_classes, facts_of
from zemosaic_phase3.pipeline.frame_groups import safe_text
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.pipeline.input_list import Inputs, list_inputs

NAMELESS: Final = "stack"  # where no header names the object


@dataclass(frozen=True)
class Kind:
    """Frames that agree: how many, of what, how long each, and when the first began (as its header has it)."""

    n: int
    object: str
    filter: str
    exposure: float  # seconds; nan: not known
    gain: float
    first: str


@dataclass(frozen=True)
class Survey:
    """The frames of a run, opened and chosen; ``notes``: what is said of inputs that are none."""

    group: Group
    listed: Inputs

    @property
    def notes(self) -> list[str]:
        """What is to be said of the inputs and of the choice."""
        return [*self.listed.notes, *self.group.notes]

    def kinds(self) -> list[Kind]:
        """Return the kinds of frames that would be stacked, the commonest first."""
        facts = [facts_of(self.group, i) for i in self.group.usable]
        times = exposure_classes([f.exposure for f in facts])
        keys = [
            (canonical_name(f.object), canonical_filter(f.filter), times.get(f.exposure, math.nan), f.gain)
            for f in facts
        ]
        texts = [tuple(map(str, key)) for key in keys]  # nan is unequal to itself
        found = []
        for text, n in Counter(texts).most_common():
            members = [f for f, own in zip(facts, texts, strict=True) if own == text]
            _, _, exposure, gain = keys[texts.index(text)]
            starts = [f.start for f in members if f.start]
            found.append(Kind(n, members[0].object, members[0].filter, exposure, gain, min(starts, default="")))
        return found

    def file_name(self) -> str:
        """Return a name for the result: object, number and length of exposures, filter, date of the first."""
        kinds = self.kinds()
        facts = [facts_of(self.group, i) for i in self.group.usable]
        parts = [_commonest(facts, "object") or NAMELESS]
        exposures = {kind.exposure for kind in kinds}
        n, alike = len(facts), len(exposures) == 1 and math.isfinite(next(iter(exposures)))
        parts.append(f"{n}x{next(iter(exposures)):g}s" if alike else f"{n}frames")
        parts.append(_commonest(facts, "filter"))
        days = [at.date().isoformat() for kind in kinds if (at := moment(kind.first)) is not None]
        parts.append(min(days, default=""))
        return "_".join(safe_text(part) for part in parts if part) + ".fits"


def survey(
    inputs: Sequence[Any],
    output: str | os.PathLike[str] | None,
    *,
    bayer: str = "auto",
    filter: str | None = None,
    recursive: bool = False,
    reference: str | None = None,
) -> Survey:
    """Open the frames that inputs name, and choose those that would be stacked.

    Raises
    ------
    NoFramesError
        None is left.
    OutputError
        The output is an input.
    """
    listed = list_inputs(inputs, output, recursive=recursive)
    opener = partial(open_source, bayer=bayer)
    group = open_group(
        listed.frames, opener, reference=reference, further=partial(all_images, opener=opener),
        choose=partial(choose_frames, choice=Choice(listed.named, filter)),
    )  # fmt: skip
    group.require_some("opened")
    return Survey(group, listed)


def named_output(
    inputs: Sequence[Any],
    *,
    bayer: str = "auto",
    filter: str | None = None,
    recursive: bool = False,
    several: bool = False,
) -> Path:
    """Return the file that a run without an output writes, in the current folder.

    ``several``: one for each group of frames, whose labels are added: named after the object alone.
    """
    found = survey(inputs, None, bayer=bayer, filter=filter, recursive=recursive)
    if several:
        facts = [facts_of(found.group, i) for i in found.group.usable]
        return Path(safe_text(_commonest(facts, "object") or NAMELESS) + ".fits")
    return Path(found.file_name())


def _commonest(facts: Sequence[FrameKind], name: str) -> str:
    texts = Counter(text for f in facts if (text := str(getattr(f, name))))
    return texts.most_common(1)[0][0] if texts else ""
