"""``stack`` with ``--group-by``: one stack after the other; and the exit status where too few frames were used."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3.app.printable import printable
from zemosaic_phase3.app.signals import PROGRAM
from zemosaic_phase3.app.together import check_exports
from zemosaic_phase3.errors import OutputError, ZeMosaicError
from zemosaic_phase3.pipeline.frame_groups import FrameGroup, frame_groups
from zemosaic_phase3.pipeline.input_list import Inputs, list_inputs
from zemosaic_phase3.pipeline.outputs import check_output
from zemosaic_phase3.pipeline.series import Series
from zemosaic_phase3.report.page import check_page

if TYPE_CHECKING:
    from rich.console import Console

    from zemosaic_phase3.pipeline.tile import Tile

FAILED: Final = 1
TOO_FEW: Final = 3
MOST_TOLD: Final = 12  # inputs that are in no group


def say_if_few(tile: Tile, console: Console) -> int:
    """Say it loudly, also to somebody who wants to see errors only, and return the exit status."""
    report = tile.report
    if report.n_used >= report.n_needed:
        return 0
    text = f"only {report.n_used} of {report.n_meant} frames were used (wanted: {report.n_needed}, --min-frames)"
    console.print(f"{PROGRAM}: attention: {printable(text)}", style="bold red", soft_wrap=True)
    return TOO_FEW


def run_groups(
    args: argparse.Namespace,
    console: Console,
    stack_once: Callable[[argparse.Namespace, Inputs, Console], int],
) -> int:
    """Stack each group into a file of its own; one that fails does not keep the others from being stacked.

    Returns
    -------
    int
        0; 1 where a group failed; 3 where none did and one used too few frames. With ``--dry-run`` the groups are told,
        and nothing is stacked.
    """
    groups, notes = frame_groups(
        list_inputs(args.inputs, args.output, recursive=args.recursive),
        args.group_by,
        bayer=args.bayer,
        filter=args.filter,
    )
    if args.dry_run or not args.quiet:
        _tell(groups, notes, args, console)
    wanted = [_of_group(args, group) for group in groups]
    for one in wanted:  # all of them before the first is stacked
        for path in filter(None, (one.output, one.preview, one.json, one.before_after)):
            if str(path) != "none":
                check_output(path, overwrite=args.overwrite)
        if one.report is not None:
            check_page(one.report, one.output, overwrite=args.overwrite)
        check_exports(one, [])
        if one.series is not None:
            Series(
                one.series, one.output, None, overwrite=args.overwrite, maps=args.maps
            )  # looks for what is in the way
    if args.dry_run:
        return 0
    statuses = []
    for group, one in zip(groups, wanted, strict=True):
        if not args.quiet:
            console.print(f"{printable(group.label)}:", style="bold", soft_wrap=True)
        try:
            statuses.append(stack_once(one, group.inputs, console))
        except OutputError:
            raise
        except ZeMosaicError as exc:
            console.print(f"{PROGRAM}: error: {printable(f'{group.label}: {exc}')}", style="red", soft_wrap=True)
            statuses.append(FAILED)
    return FAILED if FAILED in statuses else max(statuses, default=0)


def _of_group(args: argparse.Namespace, group: FrameGroup) -> argparse.Namespace:
    """Return the options with the files of one group."""

    def named(path: Path | None) -> Path | None:
        return None if path is None else path if str(path) == "none" else group.output(path)

    files: dict[str, Any] = {name: named(getattr(args, name)) for name in ("preview", "json", "before_after")}
    files["export"] = [group.output(path) for path in args.export]
    return argparse.Namespace(**{**vars(args), "output": group.output(args.output), **files})


def _tell(groups: list[FrameGroup], notes: list[str], args: argparse.Namespace, console: Console) -> None:
    """Say what will be stacked, and what is in no group."""
    many = "1 group" if len(groups) == 1 else f"{len(groups)} groups"
    console.print(f"{many} by {', '.join(args.group_by)}:", soft_wrap=True)
    for group in groups:
        n = len(group.inputs.frames)
        text = f"  {group.label}: {n} {'frame' if n == 1 else 'frames'} -> {group.output(args.output)}"
        console.print(printable(text), soft_wrap=True)
    for note in notes[:MOST_TOLD]:
        console.print(printable(f"  note: {note}"), soft_wrap=True)
    if len(notes) > MOST_TOLD:
        console.print(f"  ... and {len(notes) - MOST_TOLD} more", soft_wrap=True)
