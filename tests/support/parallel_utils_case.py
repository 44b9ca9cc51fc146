"""What several tests share: made for the tests of ``parallel_utils``."""

from __future__ import annotations

from zemosaic_phase3.compat import parallel_plan

CAPS = parallel_plan.ParallelCapabilities(8, 16, 64 * 10**9, 32 * 10**9)
