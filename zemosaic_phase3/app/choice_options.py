"""Options that choose other options, or say what is to be done with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.methods import RejectName, canonical
from zemosaic_phase3.pipeline.presets import PRESETS, preset_of


class SirilRejection(argparse.Action):
    """``--rej w 3 3``: the kind of rejection, and its limits on the low and on the high side."""

    def __call__(  # noqa: D102 - argparse calls it
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        kind, *limits = [str(value) for value in values or ()]
        try:
            numbers = [float(text) for text in limits]
            name = canonical("rejection", kind, RejectName)
        except (ValueError, SpecError) as exc:
            raise argparse.ArgumentError(self, f"{exc}; write e.g. --rej w 3 3") from exc
        if len(numbers) not in (0, 2):
            raise argparse.ArgumentError(
                self, f"{len(numbers)} limits: give the low and the high one, e.g. --rej w 3 3"
            )
        namespace.reject = name
        if numbers:
            namespace.kappa_low, namespace.kappa_high = numbers


def _preset(text: str) -> str:
    try:
        return preset_of(text).name
    except SpecError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose others, and those for a look before the work."""
    group = parser.add_argument_group("choices made easy")
    meanings = "; ".join(f"{preset.name}: {preset.meaning}" for preset in PRESETS.values())
    group.add_argument(
        "--preset", type=_preset, metavar="NAME",
        help=f"options under one name, over which others given here win; {meanings} (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options from a TOML file, over which those given here win (default: none)",
    )
    group.add_argument(
        "--save-config", type=Path, metavar="FILE", help="write the options given here as a TOML file (default: no)"
    )
    group.add_argument(
        "--dry-run", action="store_true",
        help="show what would be stacked, with memory and time, and write no image (default: no)",
    )  # fmt: skip
    group.add_argument(
        "--rej", nargs="+", action=SirilRejection, default=argparse.SUPPRESS, metavar="KIND",
        help="as in Siril: w 3 3 is --reject winsorized_sigma_clip --kappa-low 3 --kappa-high 3 (default: none)",
    )  # fmt: skip
