"""What machine and which versions a run was made with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("compressor-bert", "torch", "transformers", "datasets", "accelerate", "onnx", "onnxscript", "onnxruntime")


def describe_machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, system and Python."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def int8_overflows() -> bool:
    """Whether int8 products of 8 bits overflow here: x86 without VNNI adds pairs of products in 16 bits.

    Where the system does not tell what the processor can, it is taken for one that does overflow.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not {"avx512_vnni", "avx_vnni"}.intersection(_information("flags").split())


def _processor() -> str:
    return _information("model name") or platform.processor() or platform.machine()


def _information(key: str) -> str:
    """What Linux says of the processor; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
