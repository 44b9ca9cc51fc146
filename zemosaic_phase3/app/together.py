"""Options that do not go together: said before a frame is opened, with the reason and what to do instead."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from zemosaic_phase3.app.options import NO_PREVIEW
from zemosaic_phase3.errors import OutputError, SpecError
from zemosaic_phase3.io.export import check_export
from zemosaic_phase3.io.inputs import real_paths
from zemosaic_phase3.pipeline.comet import comet_of
from zemosaic_phase3.pipeline.input_list import is_own_tile
from zemosaic_phase3.pipeline.outputs import check_output
from zemosaic_phase3.pipeline.series import targets_of

_NOT_WATCHED: Final = (
    ("group_by", "--group-by"),
    ("dry_run", "--dry-run"),
    ("no_resume", "--no-resume"),
    ("series", "--series"),
)


def check_together(args: argparse.Namespace) -> None:
    """Refuse what ``stack`` cannot do with the options given, alone or beside each other.

    Raises
    ------
    SpecError
        Two contradict each other, or one is wrong in itself.
    OutputError
        An export could not be written.
    """
    comet = comet_of(args.comet)
    targets_of(args.series, args.targets, follows=comet is not None)
    if args.group_by is None:
        return
    if comet is not None and comet.clicks:
        raise SpecError(
            "--group-by makes several stacks, and --comet FRAME:X,Y names frames of one; give a table with times and "
            "places, --comet TABLE.csv, or stack the groups one by one with --filter"
        )
    if str(args.json) == "-":
        raise SpecError("--group-by writes several reports; name a file with --json, not the standard output")
    if args.reference != "auto":
        raise SpecError("--group-by makes several stacks, and --reference names a frame of one; stack that group alone")


def check_exports(args: argparse.Namespace, others: list[Path]) -> None:
    """Refuse exports that could not be written, or are the same file as another result.

    Raises
    ------
    SpecError
        Two results have one name.
    OutputError
        An export exists, or its library is missing.
    """
    for path in args.export:
        check_export(path)
        check_output(path, overwrite=args.overwrite, compressed=True)
    files = [*others, *args.export]
    if args.export and len(set(real_paths(files))) < len(files):
        raise SpecError(
            f"--export must name other files than output, preview and report, not {', '.join(map(str, args.export))}; "
            "the preview is OUT.png, and --preview none does without it"
        )


def check_watch(args: argparse.Namespace) -> Path:
    """Refuse what ``watch`` cannot do; returns the folder to be watched.

    Raises
    ------
    SpecError
        An option makes no sense in a stack that is made again and again.
    OutputError
        A result of somebody else would be replaced: that of a pass before may be, and nothing else.
    """
    if len(args.inputs) != 1 or not Path(args.inputs[0]).is_dir():
        raise SpecError("watch takes one folder; create it first, or name another one")
    folder = Path(args.inputs[0])
    for option, name in _NOT_WATCHED:
        if getattr(args, option):
            raise SpecError(f"watch and {name} do not go together; use stack with it")
    if args.output is None:
        raise SpecError("watch needs -o OUT: the name would change with the number of frames")
    if str(args.json) == "-":
        raise SpecError("watch writes a report with each pass; name a file with --json, not the standard output")
    comet = comet_of(args.comet)
    for click in () if comet is None else comet.clicks:
        if not _is_there(folder, click.frame):
            raise SpecError(
                f"--comet {click.frame}: no such frame in {folder} yet; give a table with times and places, --comet "
                "TABLE.csv, or two frames that are there"
            )
    if args.output.exists() and not (args.overwrite or is_own_tile(args.output)):
        raise OutputError(f"{args.output}: exists already and is no stack; choose another name, or allow --overwrite")
    if not args.output.exists():  # the first start: nothing beside it is of an earlier pass
        preview = args.output.with_suffix(".png") if args.preview is None else args.preview
        beside = (None if preview == NO_PREVIEW else preview, args.json, args.before_after)
        for path in filter(None, beside):
            check_output(path, overwrite=args.overwrite)
        check_exports(args, [])
    return folder


def _is_there(folder: Path, frame: str) -> bool:
    name = Path(frame).name
    return Path(frame).is_file() or (folder / frame).is_file() or any(path.name == name for path in folder.rglob("*"))
