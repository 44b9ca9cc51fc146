"""Whether there is an NVIDIA card at all: where there is none, nothing about GPUs needs to be explained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

SIGNS: Final = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/nvidia-smi")


def has_nvidia_card() -> bool:
    """Return True if this machine seems to have an NVIDIA card, whatever its software can do."""
    return shutil.which("nvidia-smi") is not None or any(Path(sign).exists() for sign in SIGNS)
