"""Options from a file: read from TOML and written to it, under the names that they have on the command line.

What is given on the command line wins over the file, and the file over a preset.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zemosaic_phase3.app.choice_options import SirilRejection
from zemosaic_phase3.errors import OutputError, SpecError
from zemosaic_phase3.io.atomic_write import written_whole
from zemosaic_phase3.pipeline.presets import preset_of

NOT_IN_A_FILE: Final = frozenset({"help", "config", "save_config", "dry_run", "version"})
CLOSE: Final = 0.7  # of difflib
LARGEST_BYTES: Final = 1 << 20


def given_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """Return what a command line gives, as it was written; ``parser``: of the command, changed by this.

    Parameters
    ----------
    parser : ArgumentParser
        Of the command; its types and defaults are taken away.
    argv : sequence of str
        What stands behind the command.
    """
    for action in parser._actions:  # noqa: SLF001 - no other way
        action.type, action.default, action.choices = None, argparse.SUPPRESS, None  # choices are of converted values
    parser._defaults.clear()  # noqa: SLF001 - no other way
    return vars(parser.parse_known_args(argv)[0])


def apply_defaults(parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> dict[str, Any]:
    """Make the defaults of a command those of the preset and the configuration file that were given.

    Returns
    -------
    dict
        What the file says, as it is written there, by the names of the options.

    Raises
    ------
    SpecError
        The file cannot be read, or says something that is no option; names file and entry.
    """
    converted, told = ({}, {}) if "config" not in given else read_config(Path(given["config"]), parser)
    preset = given.get("preset", converted.get("preset"))
    values = {} if preset is None else dict(preset_of(preset).values)
    for loud, other in (("quiet", "verbose"), ("verbose", "quiet")):
        if loud in given:  # they exclude each other
            converted.pop(other, None)
            told.pop(other, None)
    parser.set_defaults(**{**values, **converted})
    return told


def read_config(path: Path, parser: argparse.ArgumentParser) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the options in a TOML file: converted and checked as those of the command line are, and as written.

    Raises
    ------
    SpecError
        The file cannot be read, or an entry is wrong.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise SpecError(f"{path}: is no configuration ({path.stat().st_size} bytes); name a TOML file")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise SpecError(f"{path}: no such file; write one with --save-config {path}") from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise SpecError(f"{path}: is no TOML that can be read ({exc}); see docs/choices.md") from exc
    known = _options_of(parser)
    values: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, CLOSE)
            guess = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise SpecError(f"{path}: there is no option {key}{guess}")
        try:
            found = _converted(known[name], value, parser)
        except (argparse.ArgumentTypeError, argparse.ArgumentError, ValueError, TypeError) as exc:
            raise SpecError(f"{path}: {key} = {value!r}: {exc}") from exc
        twice = sorted(found.keys() & values.keys())
        if twice:
            raise SpecError(f"{path}: {key} = {value!r}: {', '.join(twice)} is given twice; leave one out")
        values |= found
        told |= {name: value} if known[name].dest in found else found  # of one that stands for others: those
    if values.get("quiet") and values.get("verbose"):
        raise SpecError(f"{path}: quiet and verbose contradict each other; leave one out")
    return values, told


def _options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options that a file may name, by all names that they have on the command line."""
    options = [action for action in parser._actions if action.dest not in NOT_IN_A_FILE]  # noqa: SLF001 - no other way
    other = {
        text[2:].replace("-", "_"): action
        for action in options
        for text in action.option_strings
        if text.startswith("--") and not text.startswith("--no-") and action.nargs != 0
    }
    return {**other, **{action.dest: action for action in options}}


def _converted(action: argparse.Action, value: Any, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return a value of a file as its option has it, by where it is kept; an option may stand for others.

    Raises ValueError and the errors of argparse and its converters.
    """
    if isinstance(action, SirilRejection):
        space = argparse.Namespace()
        action(parser, space, value if isinstance(value, list) else str(value).split())
        return vars(space)
    return {action.dest: _one_converted(action, value)}


def _one_converted(action: argparse.Action, value: Any) -> Any:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError("is not true or false")
        return value
    if action.nargs == "?" and value is True:  # as without a word on the command line
        return action.const
    if isinstance(value, bool | dict):
        raise ValueError("must be a text or a number")
    convert = action.type if callable(action.type) else str
    is_list = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+")  # noqa: SLF001 - no other way
    if is_list:
        return [convert(str(item)) for item in (value if isinstance(value, list) else [value])]
    found = convert(",".join(map(str, value)) if isinstance(value, list) else str(value))
    if action.choices is not None and found not in action.choices:
        raise ValueError(f"choose one of: {', '.join(map(str, action.choices))}")
    return found


def save_config(path: Path, given: Mapping[str, Any], parser: argparse.ArgumentParser, *, overwrite: bool) -> None:
    """Write what was given, on the command line and in a configuration file, as a TOML file.

    Raises
    ------
    OutputError
        The file exists, or cannot be written.
    """
    flags = {action.dest for action in parser._actions if action.nargs == 0}  # noqa: SLF001
    lines = ["# options of zemosaic-phase3 stack; use with --config"]
    for name, value in sorted(given.items(), key=lambda item: (item[0] != "inputs", item[0])):
        if name in NOT_IN_A_FILE or name in ("run", "parser") or value is None:
            continue
        lines.append(f"{name.replace('_', '-')} = {_toml(value, is_flag=name in flags)}")
    try:
        text = ("\n".join(lines) + "\n").encode()
    except UnicodeEncodeError as exc:
        raise OutputError(
            f"{path}: a name has bytes that are no text, which TOML cannot hold; rename that file"
        ) from exc
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    with written_whole(path, len(text), overwrite=overwrite) as stream:
        stream.write(text)


def _toml(value: Any, *, is_flag: bool) -> str:
    if is_flag and isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item, is_flag=False) for item in value) + "]"
    if re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", str(value)):
        return str(value)
    text = json.dumps(str(value), ensure_ascii=False)  # a basic string of TOML is written like one of JSON
    return text.replace("\x7f", "\\u007f")
