"""The command line: ``zemosaic-phase3``."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NoReturn, get_args

from zemosaic_phase3 import __version__
from zemosaic_phase3.app import console as console_module
from zemosaic_phase3.app.commands import (
    run_attach,
    run_bench,
    run_completion,
    run_demo,
    run_detach,
    run_doctor,
    run_simulate,
    run_stack,
    run_view,
    run_watch,
)
from zemosaic_phase3.app.config import apply_defaults, given_options
from zemosaic_phase3.app.guess import unknown_options
from zemosaic_phase3.app.log_file import logged_to
from zemosaic_phase3.app.options import (
    add_bench,
    add_checkout,
    add_completion,
    add_demo,
    add_doctor,
    add_simulate,
    add_stack,
    add_view,
    add_watch,
)
from zemosaic_phase3.app.printable import broken_lines, printable
from zemosaic_phase3.app.signals import PROGRAM, stopped_status
from zemosaic_phase3.app.tiles import add_mosaic, add_plan, add_tiles, run_mosaic, run_plan, run_tiles
from zemosaic_phase3.errors import SpecError, ZeMosaicError
from zemosaic_phase3.methods import FlattenName

FAILED, USAGE = 1, 2
GARBAGE_OBJECTS: Final = 5000  # made since the last look for garbage, until the next; Python's own limit is 700


class _Parser(argparse.ArgumentParser):
    """A parser, and with it those of the commands, whose messages may go to a terminal."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return super().parse_known_args(_without_guessing(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _without_guessing(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which an option whose word may be left out takes none of the inputs for that word."""
    words = get_args(FlattenName)
    return [
        f"{option}=on" if option == "--flatten" and not set(arguments[k + 1 : k + 2]) & set(words) else option
        for k, option in enumerate(arguments)
    ]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; ``args.run`` is the command, ``args.parser`` its own parser."""
    parser = _Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Turns a folder of astronomical sub-frames into one master image.",
        epilog=f"'{PROGRAM} COMMAND --help' lists the options of a command. Exit status: 0 done, 1 nothing stacked or "
        "failed, 2 wrong usage, 3 done with too few of the frames, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add, run, name, usage, text in (
        (add_stack, run_stack, "stack", "INPUT... [-o OUT] [options]", "register and stack frames into one FITS image"),
        (add_watch, run_watch, "watch", "FOLDER -o OUT [options]", "stack the frames of a folder as they arrive"),
        (add_view, run_view, "view", "TILE", "show what a tile holds and how it was made, as a page in the browser"),
        (add_plan, run_plan, "plan", "INPUT... -o PLAN.toml [options]", "group solved frames into tiles, by position"),
        (add_tiles, run_tiles, "tiles", "PLAN.toml -o DIR [options]", "make the tiles of a plan, here or on a cluster"),
        (add_mosaic, run_mosaic, "mosaic", "DIR -o OUT [options]", "put tiles together into one image"),
        (add_demo, run_demo, "demo", "[DIR]", "simulate frames, stack them, compare the result with the truth"),
        (add_simulate, run_simulate, "simulate", "DIR [options]", "write seeded Seestar-like frames and their truth"),
        (add_doctor, run_doctor, "doctor", "", "show versions, cores, memory, GPU, and what stack would choose"),
        (add_bench, run_bench, "bench", "[options]", "time every method on this machine and say what limits it"),
        (add_completion, run_completion, "completion", "SHELL", "print a script that completes this program's options"),
        (add_checkout, run_attach, "attach", "CHECKOUT", "make a ZeMosaic checkout use this library"),
        (add_checkout, run_detach, "detach", "CHECKOUT", "undo attach, without a trace"),
    ):
        command = commands.add_parser(
            name,
            usage=f"{PROGRAM} {name} {usage}".rstrip(),
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            allow_abbrev=False,
        )
        command.set_defaults(run=run, parser=command)
        add(command)
    return parser


@contextmanager
def _printable_streams() -> Iterator[None]:
    """Let file names that the terminal's encoding lacks be printed as escapes rather than end the run."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError, ValueError):  # it writes out what is left, and nobody may be there to read it
                stream.reconfigure(errors=errors)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for cyclic garbage less often: most objects of a run are those of packages, which stay.

    With its own thresholds it takes 0.05 s of a start.
    """
    before = gc.get_threshold()
    gc.set_threshold(GARBAGE_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _parsed(argv: list[str]) -> argparse.Namespace:
    """Parse a command line, over what its preset and its configuration file say."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.parser.error(unknown_options(unknown, args.parser))
    if any(getattr(args, name, None) is not None for name in ("preset", "config", "save_config")):
        given = given_options(build_parser().parse_known_args(argv)[0].parser, argv[1:])
        try:
            told = apply_defaults(args.parser, given)
        except SpecError as exc:
            args.parser.error(str(exc))
        args = parser.parse_known_args(argv)[0]
        args.to_save = {**told, **given}
    args.root = parser
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default: those of the process.

    Returns
    -------
    int
        The exit status: 0 done, 1 failed, 3 done with fewer frames than wanted, 130 interrupted (143 by SIGTERM, 129 by
        SIGHUP).

    Raises
    ------
    SystemExit
        With 2 after a wrong usage, with 0 after ``--help`` and ``--version``.
    """
    args = _parsed(sys.argv[1:] if argv is None else list(argv))
    args.command_line = [PROGRAM, *map(str, sys.argv[1:] if argv is None else argv)]
    with _printable_streams(), _rare_collections():
        console = console_module.make_console(sys.stderr)
        try:
            with (
                console_module.shown_log(console, quiet=args.quiet, verbose=args.verbose),
                logged_to(args.log, args.command_line),
            ):
                status: int | None = args.run(args, console)
        except SpecError as exc:
            args.parser.error(str(exc))
        except KeyboardInterrupt as exc:
            console.print(f"{PROGRAM}: interrupted", soft_wrap=True)
            return stopped_status(exc.args[0] if exc.args else signal.SIGINT)
        except (ZeMosaicError, OSError, MemoryError) as exc:
            if args.verbose:
                console.print(printable(traceback.format_exc(), lines=True), soft_wrap=True)
            text = f"out of memory ({exc}); use a smaller --memory" if isinstance(exc, MemoryError) else str(exc)
            shown = broken_lines(f"{PROGRAM}: error: {printable(text)}", console)
            console.print("\n".join(shown), style="red", soft_wrap=True)
            return FAILED
    return status or 0
