"""What this machine has, and what a stack would choose."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zemosaic_phase3 import __version__
from zemosaic_phase3.runtime.limits import (
    ContainerLimits,
    available_memory,
    container_limits,
    default_limit,
    memory_text,
    usable_cpus,
)
from zemosaic_phase3.runtime.nvidia_card import has_nvidia_card

if TYPE_CHECKING:
    from zemosaic_phase3.engine.gpu_check import Usability
    from zemosaic_phase3.runtime.cuda import GpuProbe

PACKAGES: Final = ("numpy", "numba", "astropy", "scipy", "rich", "psutil")
NO_KERNEL_CACHE: Final = "no folder can be written: kernels are compiled at every start; set NUMBA_CACHE_DIR"


def kernel_cache() -> Path | None:
    """Return the folder where compiled kernels are kept; None if none can be written (or nothing is compiled)."""
    from zemosaic_phase3.resample.demosaic import demosaic_rows
    from zemosaic_phase3.runtime.jit import cache_folder

    return cache_folder(demosaic_rows)


def kernel_folders() -> list[Path]:
    """List the folders that keep compiled kernels: Numba makes one for each folder of sources."""
    from zemosaic_phase3.runtime.jit import PACKAGE, cache_folder, stamped_files

    found = set()
    for file in stamped_files():
        module = importlib.import_module(".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts)))
        found |= {folder for kernel in vars(module).values() if (folder := cache_folder(kernel)) is not None}
    return sorted(found)


def clear_kernel_cache() -> str:
    """Remove all compiled kernels; returns what was done, in one line."""
    from zemosaic_phase3.runtime.kernel_cache import cached_files

    folders = kernel_folders()
    files = cached_files(folders)
    freed = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink(missing_ok=True)
    return f"{len(files)} files of compiled kernels removed, {memory_text(freed)}; the next stack compiles anew"


def _cache_facts() -> list[tuple[str, str]]:
    from zemosaic_phase3.runtime.kernel_cache import cached_files, why_untrusted

    folders = kernel_folders()
    if not folders:
        return [("kernel cache", NO_KERNEL_CACHE)]
    files = cached_files(folders)
    home = os.path.commonpath([str(folder) for folder in folders])
    size = memory_text(sum(file.stat().st_size for file in files))
    facts = [("kernel cache", f"{home}: {len(files)} files, {size}; doctor --clear-kernels removes them")]
    reasons = {folder: why for folder in folders if (why := why_untrusted(folder))}
    return facts + [("", f"{folder} is not used: {why}") for folder, why in reasons.items()]


def machine_facts() -> list[tuple[str, str]]:
    """Return what ``doctor`` prints: labels and texts on versions, cores, memory, GPU, and what a stack would use."""
    from zemosaic_phase3.engine.gpu_check import usability
    from zemosaic_phase3.pipeline.device_policy import LOGGER, POLICY
    from zemosaic_phase3.runtime import cuda as cuda_module

    limits = container_limits()
    cpus, available = usable_cpus(limits), available_memory(limits)
    takes_gpu = POLICY.candidate(True, LOGGER)
    why = "" if takes_gpu or not has_nvidia_card() else f" ({POLICY.refusal(True)})"
    return [
        ("versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
        ("python", f"{sys.executable} on {platform.platform()}"),
        ("cores", f"{cpus} of {os.cpu_count()} may be used" + (f"; quota {limits.cpus:g}" if limits.cpus else "")),
        ("memory", _memory_fact(limits, available)),
        *_cache_facts(),
        *_gpu_facts(cuda_module.probe(), usability()),
        ("stack would", f"use the {'GPU' if takes_gpu else 'CPU'}{why},"),
        ("", f"{cpus} workers, {memory_text(default_limit())} of memory (unless --memory says otherwise)"),
    ]


def _memory_fact(limits: ContainerLimits, available: int) -> str:
    import psutil

    text = f"{memory_text(available)} available of {memory_text(int(psutil.virtual_memory().total))}"
    return text if limits.memory_limit is None else f"{text}; container limit {memory_text(limits.memory_limit)}"


def _gpu_facts(gpu: GpuProbe, check: Usability) -> list[tuple[str, str]]:
    if not gpu.usable_hint:
        if not has_nvidia_card():
            return [("GPU", "none: no NVIDIA card was found on this machine")]
        return [("GPU", f"none: {gpu.reason}"), ("", f"remedy: {gpu.remedy}")]
    free = f"{memory_text(gpu.vram_free)} free of {memory_text(gpu.vram_total)}"
    cuda = f"CuPy {gpu.cupy_version}, CUDA runtime {gpu.runtime_version}, driver {gpu.driver_version}"
    return [("GPU", f"{gpu.name}, {free}; {cuda}"), ("", _verdict(check)), *_further_cards()]


def _verdict(check: Usability) -> str:
    return "a test tile came out right" if check.usable else f"cannot be used: {check.reason}; remedy: {check.remedy}"


def _further_cards() -> list[tuple[str, str]]:
    """Return what there is to say of the cards beside the first, which ``--gpus`` takes."""
    from zemosaic_phase3.engine.gpu_check import usability
    from zemosaic_phase3.runtime import cuda

    facts = []
    for card in range(1, cuda.card_count()):
        gpu, check = cuda.on_card(card, lambda: (cuda.probe(), usability()))
        free = f"{memory_text(gpu.vram_free)} free of {memory_text(gpu.vram_total)}"
        facts.append((f"card {card}", f"{gpu.name}, {free}; {_verdict(check)}"))
    return facts


def versions() -> dict[str, str]:
    """Return the versions of this program, of Python and of the packages it rests on; "missing" where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"zemosaic-phase3": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
