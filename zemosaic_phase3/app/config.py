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
        action.type, action.default = None, argparse.SUPPRESS
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
    known = {action.dest: action for action in parser._actions if action.dest not in NOT_IN_A_FILE}  # noqa: SLF001
    values: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, CLOSE)
            guess = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise SpecError(f"{path}: there is no option {key}{guess}")
        told[name] = value
        try:
            values[name] = _converted(known[name], value)
        except (argparse.ArgumentTypeError, ValueError, TypeError) as exc:
            raise SpecError(f"{path}: {key} = {value!r}: {exc}") from exc
    return values, told


def _converted(action: argparse.Action, value: Any) -> Any:
    """Return a value of a file as its option has it; raises ValueError and the errors of argparse's converters."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError("is not true or false")
        return value
    if isinstance(value, bool | dict):
        raise ValueError("must be a text or a number")
    convert = action.type if callable(action.type) else str
    is_list = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+")  # noqa: SLF001 - no other way
    if is_list:
        return [convert(str(item)) for item in (value if isinstance(value, list) else [value])]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return convert(text)


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
    text = ("\n".join(lines) + "\n").encode()
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
    return json.dumps(str(value), ensure_ascii=False)  # a basic string of TOML is written like one of JSON
