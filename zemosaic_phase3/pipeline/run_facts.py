"""What a run says of itself, as the table RUN of its tile: KEY and VALUE, both text; and the report read back from it.

So that a tile tells years later how it was made, and what was noted then, without a file beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from zemosaic_phase3.records import Resumed, SelfCheck, TileReport

IN_FRAMES: Final = frozenset({"dropped"})  # what the table of frames says already
PARTS: Final[Mapping[str, type]] = {"self_check": SelfCheck, "resumed": Resumed}
TEXTS: Final = frozenset({"warnings", "calibration", "command"})  # lists of text; other lists are of numbers
TRUTH: Final[Mapping[str, bool]] = {"True": True, "False": False}


def run_columns(report: TileReport) -> dict[str, list[str]]:
    """Return the table RUN by column: one row per fact.

    An entry within another has both names with a dot between, such as ``seconds.measure``; a list has one row per item.
    What is not known has no row.
    """
    rows = [pair for name, value in report.as_dict().items() if name not in IN_FRAMES for pair in _rows(name, value)]
    return {"KEY": [key for key, _ in rows], "VALUE": [text for _, text in rows]}


def _rows(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for name, item in value.items() for pair in _rows(f"{key}.{name}", item)]
    if isinstance(value, list | tuple):
        return [pair for item in value for pair in _rows(key, item)]
    return [] if value is None or value == "" else [(key, str(value))]


def report_from(keys: Iterable[str], values: Iterable[str], dropped: Sequence[tuple[str, str]] = ()) -> TileReport:
    """Return the report that a table RUN holds.

    Parameters
    ----------
    keys, values : iterable of str
        The columns of the table. What is unknown here, or cannot be read, is passed over: a later version wrote it.
    dropped : sequence of (name, reason)
        From the table FRAMES.
    """
    found: dict[str, list[str]] = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(key, []).append(value)
    report = TileReport(dropped=list(dropped))
    for item in fields(TileReport):
        if item.name in IN_FRAMES:
            continue
        inner = {key.partition(".")[2]: texts for key, texts in found.items() if key.startswith(f"{item.name}.")}
        try:
            if item.name in PARTS:
                if inner:
                    setattr(report, item.name, _part(PARTS[item.name], inner))
            elif inner:
                setattr(report, item.name, _nested(inner))
            elif item.name in found:
                setattr(report, item.name, _typed(getattr(report, item.name), item.name, found[item.name]))
        except ValueError:
            continue
    return report


def _nested(inner: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return a mapping, and those within it, of keys with a dot between."""
    found: dict[str, Any] = {}
    for key, texts in inner.items():
        outer, dot, rest = key.partition(".")
        if dot:
            found.setdefault(outer, {})[rest] = _value(texts)
        else:
            found[outer] = _value(texts)
    return found


def _part(kind: type, inner: Mapping[str, list[str]]) -> Any:
    default = kind()
    known = {item.name for item in fields(kind)}
    return kind(**{key: _typed(getattr(default, key), key, texts) for key, texts in inner.items() if key in known})


def _typed(default: Any, name: str, texts: list[str]) -> Any:
    """Return a value of the kind that a field has."""
    if isinstance(default, list):
        return list(texts) if name in TEXTS else [float(text) for text in texts]
    if isinstance(default, bool):
        return TRUTH[texts[0]]
    if isinstance(default, str):
        return texts[0]
    return int(texts[0]) if isinstance(default, int) else float(texts[0])


def _value(texts: list[str]) -> Any:
    """Return what a text of a mapping stood for: a number, True or False, or itself; several are a list."""
    values = []
    for text in texts:
        number: Any = TRUTH.get(text, text)
        for kind in (float, int):
            try:
                number = kind(text)
            except ValueError:
                continue
        values.append(number)
    return values[0] if len(values) == 1 else values
