"""Turns a folder of astronomical sub-frames into one clean master tile: register, match, weight, reject, combine."""

from __future__ import annotations

__version__ = "0.1.0"
