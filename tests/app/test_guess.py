"""What is said of options that do not exist."""

from __future__ import annotations

import pytest

from zemosaic_phase3.app.cli import build_parser, main
from zemosaic_phase3.app.guess import OTHER_WORDS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--darks", "x"], "no option --darks; did you mean --dark?"),
        (["--sigma-low", "3"], "did you mean --kappa-low?"),
        (["--normalise=none"], "no option --normalise; did you mean --normalize?"),
        (["--max-fwmh", "3"], "did you mean --max-fwhm?"),
        (["--gpu"], "did you mean --device gpu?"),
        (["--frobnicate"], "no option --frobnicate (all: zemosaic-phase3 stack --help)"),
        (["more.fits"], "what does more.fits mean?"),
    ],
)
def test_the_nearest_option_is_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["stack", "subs", "-o", "o.fits", *arguments])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert said in " ".join(told.split())
    assert "zemosaic-phase3 stack INPUT" in told


def test_other_words_stand_for_options_that_exist() -> None:
    args = build_parser().parse_args(["stack", "x", "-o", "y.fits"])
    known = {name for action in args.parser._actions for name in action.option_strings}  # noqa: SLF001 - no other way
    assert {guess.split()[0] for guess in OTHER_WORDS.values()} <= known
    assert not known & OTHER_WORDS.keys()
