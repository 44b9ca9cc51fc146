"""How many of the frames must be used for a stack to be one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.pipeline.group import Group

MOST_REASONS: Final = 3  # in one message


@dataclass(frozen=True)
class LeastFrames:
    """The least number of frames, whole or as a share of those that were meant to be stacked.

    Attributes
    ----------
    number : float
        Frames, or percent.
    is_percent : bool
    asked : bool
        A user named it.
    fails : {"never", "one", "few"}
        What ends the run before the stack: nothing; one frame of several left; fewer than the number.
    """

    number: float = 50.0
    is_percent: bool = True
    asked: bool = False
    fails: Literal["never", "one", "few"] = "never"

    @classmethod
    def of(cls, text: str | int | None, fails: Literal["one", "few"] = "few") -> LeastFrames:
        """Return what "12", 12 or "80%" asks for; None: half of the frames.

        Raises
        ------
        SpecError
            It is neither a whole number of at least 1 nor a share of 0 % to 100 %.
        """
        if text is None:
            return cls(fails="one" if fails == "one" else "never")
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(text))
        number = float(found[1]) if found is not None else -1.0
        is_percent = found is not None and found[2] == "%"
        if isinstance(text, bool) or not (
            0.0 <= number <= 100.0 if is_percent else number >= 1.0 and number.is_integer()
        ):
            raise SpecError(f"min frames = {text!r} is neither a number of frames such as 20 nor a share such as 80%")
        return cls(number, is_percent, True, fails)

    def needed(self, meant: int) -> int:
        """Return the least number of frames out of those that were meant to be stacked; one alone is enough."""
        share = math.ceil(self.number / 100.0 * meant - 1e-9)
        return max(1, min(share, meant)) if self.is_percent else int(self.number)

    def check(self, group: Group) -> None:
        """End a run that would give too little, before it is stacked.

        Raises
        ------
        NoFramesError
            Says how many frames are left, why, and how to have the result all the same.
        """
        used, meant = len(group.usable), meant_frames(group)
        accepted = self.asked and used >= self.needed(meant)
        is_lone = used == 1 < meant
        too_few = self.fails == "few" and used < self.needed(meant)
        if accepted or not (too_few or (is_lone and self.fails == "one")):
            return
        reasons = f" {told}." if (told := _reasons(group)) else ""
        what = "one frame is no stack" if is_lone else f"at least {self.needed(meant)} are asked for"
        unregistered = sum(row.reason.startswith("not registered") for row in group.rows)
        hint = " Frames without stars (Moon, planets, Sun) that need no shift: --register none." if unregistered else ""
        raise NoFramesError(
            f"{used} of {meant} frames {'is' if used == 1 else 'are'} left, and {what}; nothing is written.{reasons}"
            f"{hint} To have it all the same: --min-frames {used}"
        )

    def remark(self, used: int, meant: int) -> str:
        """Return the line that says loudly that too few frames were used; empty where they are enough."""
        if used >= self.needed(meant):
            return ""
        limit = f"{self.number:g} %" if self.is_percent else f"{self.number:g} frames"
        than = f"than {limit}" if self.asked or not self.is_percent else "than half"
        return f"only {used} of {meant} frames were used, fewer {than} (--min-frames): see why the others were left out"


def _reasons(group: Group) -> str:
    """Say why frames were left out, with those of one reason together."""
    alike: dict[str, list[str]] = {}
    for row in group.rows:
        if row.meant and not row.used:
            alike.setdefault(row.reason, []).append(Path(row.name).name)
    told = [
        f"{names[0]}: {reason}" if len(names) == 1 else f"{len(names)} frames such as {names[0]}: {reason}"
        for reason, names in sorted(alike.items(), key=lambda item: -len(item[1]))
    ]
    return "; ".join([*told[:MOST_REASONS], "..."] if len(told) > MOST_REASONS else told)


def meant_frames(group: Group) -> int:
    """Count the inputs that were to be stacked.

    Calibration frames, finished stacks, copies, and those that were asked to be left out are not among them.
    """
    return sum(row.meant for row in group.rows)
