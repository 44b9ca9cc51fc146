"""Records as bytes and back: nothing lost, nothing damaged taken for whole, nothing but the named classes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zemosaic_phase3.io.value_bytes import digest, from_bytes, to_bytes


@dataclass(frozen=True)
class Inner:
    values: np.ndarray


@dataclass
class Outer:
    name: str
    number: float = math.nan
    inner: Inner | None = None
    when: datetime | None = None
    parts: list[float] = field(default_factory=list)


@given(
    hnp.arrays(st.sampled_from(["<f4", "<f8", ">f4", "<i8", "|b1", "<u2"]), hnp.array_shapes(min_dims=0, min_side=0))
)
def test_arrays_keep_their_bits(array: np.ndarray) -> None:
    back = from_bytes(to_bytes([array, array[..., None]]), ())
    assert [item.dtype for item in back] == [array.dtype] * 2
    assert back[0].shape == array.shape
    assert back[0].tobytes() == array.tobytes()
    assert back[1].tobytes() == array.tobytes()


@given(st.floats())
def test_numbers_keep_their_bits(number: float) -> None:
    back = from_bytes(to_bytes((number, np.float64(number), [1, True, None, "é\n"])), ())
    assert back[2] == [1, True, None, "é\n"]
    assert all(math.isnan(item) if math.isnan(number) else np.float64(item).tobytes() == np.float64(number).tobytes()
               for item in back[:2])  # fmt: skip


def test_records_come_back() -> None:
    record = Outer("a", 0.1, Inner(np.arange(3, dtype=np.float32)), datetime(2026, 3, 4, 5, 6, 7, 89), [1.0, 2.5])  # noqa: DTZ001 - UTC by convention
    back = from_bytes(to_bytes(record), (Outer, Inner))
    assert (back.name, back.number, back.when, back.parts) == (record.name, record.number, record.when, record.parts)
    assert isinstance(back.inner, Inner)
    assert np.array_equal(back.inner.values, [0, 1, 2])
    back.inner.values[0] = 9  # its own memory


def test_every_damage_is_noticed() -> None:
    data = to_bytes(Outer("a", inner=Inner(np.arange(4.0))))
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(ValueError, match="damaged"):
            from_bytes(bytes(damaged), (Outer, Inner))
    for length in (0, 10, 20, len(data) - 1):
        with pytest.raises(ValueError, match="damaged"):
            from_bytes(data[:length], (Outer, Inner))


def test_only_named_classes_with_known_fields() -> None:
    data = to_bytes(Outer("a"))
    with pytest.raises(ValueError, match="another version"):
        from_bytes(data, (Inner,))
    other = type("Outer", (), {"__init__": lambda self, name: None})
    with pytest.raises(ValueError, match="another version"):
        from_bytes(data, (other,))


def test_what_cannot_be_kept_is_refused() -> None:
    for value in (object(), {"a": 1}, np.array(["text"]), np.array([None]), Outer):
        with pytest.raises(TypeError, match="cannot be kept"):
            to_bytes(value)


def test_digests_tell_parts_apart() -> None:
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(b"abc", ""), digest("", "abc")}) == 5
