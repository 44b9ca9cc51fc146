"""What this machine has, and a plan for its processors and memory: names that existing programs call."""

from __future__ import annotations

from zemosaic_phase3.compat.parallel_plan import (
    ParallelCapabilities,
    ParallelPlan,
    auto_tune_parallel_plan,
    detect_parallel_capabilities,
)

__all__ = [
    "ParallelCapabilities",
    "ParallelPlan",
    "auto_tune_parallel_plan",
    "detect_parallel_capabilities",
]
