"""Values as configurations write them: numbers, switches and pairs, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zemosaic_phase3.errors import SpecError


def as_number(name: str, value: Any) -> float:
    """Return a number, also of a text that is one; SpecError names the option and the value."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise SpecError(f"{name} = {value!r} is not a number") from exc


def in_range(name: str, value: object, low: float, high: float, *, open_high: bool = False) -> float:
    """Return a number within [low, high], or [low, high) if ``open_high``; SpecError names option and value."""
    number = as_number(name, value)
    inside = low <= number < high if open_high else low <= number <= high
    if not inside:
        bracket = ")" if open_high else "]"
        raise SpecError(f"{name} = {value!r} is outside [{low:g}, {high:g}{bracket}")
    return number


def store_number(spec: object, field_name: str, label: str, low: float, high: float) -> None:
    """Check a number of a specification and store it with the type of the field's default; None means that default.

    Raises
    ------
    SpecError
        Not a number, outside [low, high], or a fraction where pixels or frames are counted.
    """
    default, given = getattr(type(spec), field_name), getattr(spec, field_name)
    number: float = in_range(label, default if given is None else given, low, high)
    if isinstance(default, int):
        if not number.is_integer():
            raise SpecError(f"{label} = {given!r} is not a whole number")
        number = int(number)
    object.__setattr__(spec, field_name, number)


def frame_limit(name: str, value: object, low: float, high: float) -> float | str | None:
    """Return a limit on frames: a number, ``"3s"`` (sigmas of the session), ``"2.5x"`` (its median), or None.

    Raises
    ------
    SpecError
        None of these, a number outside [low, high], or a multiple outside [0.1, 1000].
    """
    text = value.strip().lower() if isinstance(value, str) else ""
    if value is None or text == "none":
        return None
    if text[-1:] in ("s", "x"):
        number = in_range(f"{name}, {_UNITS[text[-1]]}", text[:-1], 0.1, 1000.0)
        return f"{number:g}{text[-1]}"
    if isinstance(value, str):
        try:
            value = float(text)
        except ValueError as exc:
            raise SpecError(
                f"{name} = {value!r} is no limit; give a number, 3s for three sigmas beyond the median of the frames, "
                "2.5x for a multiple of it, or none"
            ) from exc
    return in_range(name, value, low, high)


_UNITS = {"s": "sigmas of the session", "x": "times the median of the session"}


def winsor_limits(value: object) -> tuple[float, float]:
    """Return winsorizing limits as two fractions; None means the default (0.05, 0.05).

    Raises
    ------
    SpecError
        Not a pair of numbers, each in [0, 0.5).
    """
    if value is None:
        return (0.05, 0.05)
    try:
        low, high = (float(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as exc:
        raise SpecError(f"winsor limits {value!r} are not two numbers, e.g. 0.05,0.05") from exc
    return (
        in_range("winsor limit (low)", low, 0.0, 0.5, open_high=True),
        in_range("winsor limit (high)", high, 0.0, 0.5, open_high=True),
    )


_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def as_bool(value: object, default: bool) -> bool:
    """Read a switch as existing configurations write it: a bool, a number or 1/true/yes/on, 0/false/no/off."""
    if value is None:
        return default
    if isinstance(value, str):
        text = value.strip().lower()
        return text in _TRUE if text in _TRUE | _FALSE else default
    return bool(value)


def setting(config: object, key: str) -> Any:
    """Return a setting of a configuration, a mapping or an object with attributes; None where it has none."""
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def positive(value: object) -> int | None:
    """Read a whole number above 0 as existing configurations write it; None for anything else: no hint was given."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return int(number) if math.isfinite(number) and number >= 1 else None
