from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import oracle
import pytest

from zemosaic_phase3.check import definitions


def test_nothing_of_the_library_is_imported() -> None:
    tree = ast.parse(Path(definitions.__file__).read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in modules} == {"__future__", "collections", "typing", "numpy", "scipy"}


@pytest.mark.parametrize("whole", [False, True], ids=["floats", "integers"])
def test_the_line_of_least_absolute_deviations_is_one(whole: bool, rng: np.random.Generator) -> None:
    for n in (2, 3, 5, 6, 9, 20, 41):
        for _ in range(20):
            y = np.sort(rng.normal(0.0, 4.0, n))
            y = np.round(y) if whole else y
            line, (p, q) = definitions.least_absolute_line(y)
            best = np.abs(y - oracle.line_least_absolute(y)).sum()
            assert np.abs(y - line).sum() == pytest.approx(best, rel=1e-12, abs=1e-12)
            assert p < q and line[p] == y[p] and line[q] == pytest.approx(y[q], abs=1e-12)


def test_a_line_may_begin_where_another_one_ended(rng: np.random.Generator) -> None:
    y = np.sort(rng.normal(0.0, 4.0, 30))
    for known in ((0, 1), (3, 29), (14, 15)):
        line, _ = definitions.least_absolute_line(y, known)
        assert np.abs(y - line).sum() == pytest.approx(np.abs(y - oracle.line_least_absolute(y)).sum(), rel=1e-12)


def test_equal_samples_share_one_fate() -> None:
    x = np.array([5.0, 5.0, 5.0, 5.0, 5.0, 5.1, 5.2, 4.9, 4.8, 5.0, 900.0, 900.0])
    for method in ("gesd", "linear_fit_clip"):
        side = definitions.sides(method, x)
        assert side[-1] == side[-2]
