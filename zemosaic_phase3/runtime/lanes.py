"""How many pixels are worked on together. Nothing is imported here: who plans memory needs to know it too."""

from __future__ import annotations

from typing import Final

LANES: Final = 96
"""Neighbouring pixels (or pixel-channels) whose samples are sorted, rejected and averaged in lockstep.

A multiple of 3 (colour) and of 16 (:data:`SIMD`), sized for the second-level cache at N = 200.
"""
SIMD: Final = 16
"""Of these, pixels per vector instruction; where a processor's registers are shorter the compiler splits them."""
