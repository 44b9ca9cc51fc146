"""What a user meant who typed an option that does not exist."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Final

OTHER_WORDS: Final = {  # of Siril, PixInsight, DeepSkyStacker and astropy's ccdproc
    "--rejection": "--reject", "--sigma": "--kappa-high",
    "--sigma-low": "--kappa-low", "--sigma-high": "--kappa-high", "--clip": "--reject", "--debayer": "--bayer",
    "--out": "--output", "--threads": "--workers", "--cores": "--workers", "--ram": "--memory", "--cpu": "--device cpu",
    "--gpu": "--device gpu", "--force": "--overwrite", "--weighting": "--weight", "--align": "--register",
    "--recurse": "--recursive", "--hot-pixels": "--cosmetic", "--method": "--combine", "--ref": "--reference",
    "--clobber": "--overwrite",
    "--profile": "--preset", "--settings": "--config", "--log-file": "--log",
    "--darkflat": "--dark-flat", "--offset": "--bias", "--offsets": "--bias",
}  # fmt: skip
CLOSE: Final = 0.75  # of difflib; below, a guess is more confusing than none


def unknown_options(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Say of arguments that a command does not know which of its options may have been meant.

    Parameters
    ----------
    unknown : sequence of str
        What argparse could not place, at least one.
    parser : ArgumentParser
        Of the command.
    """
    options = [text.split("=", 1)[0] for text in unknown if text.startswith("-")]
    if not options:
        return f"what does {' '.join(unknown)} mean? Inputs stand before the options, names with blanks in quotes"
    known = [name for action in parser._actions for name in action.option_strings]  # noqa: SLF001 - no other way
    said = []
    for option in options:
        guess = OTHER_WORDS.get(option.lower())
        if guess is None or guess.split()[0] not in known:
            guess = next(iter(difflib.get_close_matches(option, known, 1, CLOSE)), "")
        said.append(f"there is no option {option}" + (f"; did you mean {guess}?" if guess else ""))
    return "; ".join(said) + f" (all: {parser.prog} --help)"
