"""Records as bytes and back, with nothing lost: what a journal keeps.

Numbers keep their bits, arrays their type and shape. Nothing in the bytes is code: a reader names the classes that may
come out, and a digest in front tells a damaged record before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np

DIGEST_BYTES: Final = 16
_LENGTH_BYTES: Final = 8
_KINDS: Final = "fiub"  # of arrays: numbers and truth values


def digest(*parts: bytes | str) -> str:
    """Return a short text that stands for some bytes and texts, and for no others."""
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(len(data).to_bytes(_LENGTH_BYTES, "little"))
        found.update(data)
    return found.hexdigest()


def to_bytes(value: object) -> bytes:
    """Write a value: a dataclass, None, truth value, number, text, time, sequence, or array of numbers.

    Raises
    ------
    TypeError
        Something in it is of another kind.
    """
    arrays: list[bytes] = []
    text = json.dumps(_described(value, arrays), separators=(",", ":")).encode()
    body = b"".join((len(text).to_bytes(_LENGTH_BYTES, "little"), text, *arrays))
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body


def from_bytes(data: bytes, classes: Sequence[type]) -> Any:
    """Read what :func:`to_bytes` wrote.

    Parameters
    ----------
    data : bytes
    classes : sequence of type
        Dataclasses that may be in it.

    Raises
    ------
    ValueError
        The bytes are damaged, or hold a class that was not named or has other fields now.
    """
    body = data[DIGEST_BYTES:]
    if hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() != data[:DIGEST_BYTES]:
        raise ValueError("damaged: its digest is another one")
    start = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
    known = {cls.__name__: cls for cls in classes}
    try:
        return _made(json.loads(body[_LENGTH_BYTES:start]), memoryview(body)[start:], known)
    except (TypeError, KeyError, AttributeError) as exc:
        raise ValueError(f"of another version: {exc}") from exc


def _described(value: object, arrays: list[bytes]) -> Any:
    """Return what JSON can hold of a value, and put the bytes of its arrays aside."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"an array of {value.dtype} cannot be kept")
        at = sum(map(len, arrays))
        arrays.append(np.ascontiguousarray(value).tobytes())
        return {"array": value.dtype.str, "shape": list(value.shape), "at": at}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_described(item, arrays) for item in value]}
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: _described(getattr(value, field.name), arrays) for field in fields(value)}
        return {"class": type(value).__name__, "fields": content}
    raise TypeError(f"{type(value).__name__} cannot be kept")


def _made(found: Any, arrays: memoryview, known: Mapping[str, type]) -> Any:
    if not isinstance(found, dict):
        return found
    if "time" in found:
        return datetime.fromisoformat(found["time"])
    if "array" in found:
        dtype, shape = np.dtype(found["array"]), tuple(found["shape"])
        flat = (
            np.frombuffer(arrays, dtype, int(np.prod(shape, dtype=np.int64)), found["at"]) if np.prod(shape) else None
        )
        return np.empty(shape, dtype) if flat is None else flat.reshape(shape).copy()
    if "class" in found:
        made = {name: _made(value, arrays, known) for name, value in found["fields"].items()}
        return known[found["class"]](**made)
    for kind in (list, tuple):
        if kind.__name__ in found:
            return kind(_made(item, arrays, known) for item in found[kind.__name__])
    raise KeyError(f"{sorted(found)} is no value")
