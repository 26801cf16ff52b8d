"""The operating system, the processor and its memory, on macOS and on Linux."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_dpo.doctor.macos import MacFacts, read_mac


@dataclass(frozen=True)
class SystemFacts:
    """The operating system and the hardware.

    Attributes:
        system: name and version, such as "macOS 15.6 (24G84)" or "Debian GNU/Linux 12 (bookworm)".
        machine: architecture that this Python is built for, such as "arm64".
        chip: name of the processor.
        cores: their number, with that of each kind where there are two.
        memory_bytes: of the machine.
        mac: what only macOS reports; None elsewhere.
    """

    system: str
    machine: str
    chip: str
    cores: str
    memory_bytes: int
    mac: MacFacts | None = None


def read_system() -> SystemFacts:
    """Ask the operating system."""
    machine, cores = platform.machine(), os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if platform.system() == "Darwin":
        return mac_system(read_mac(), machine, cores, memory)
    return SystemFacts(_linux_name(), machine, _linux_chip() or machine, str(_usable_cores(cores)), memory)


def mac_system(mac: MacFacts, machine: str, cores: int, memory_bytes: int) -> SystemFacts:
    """The facts of a Mac.

    Args:
        mac: what macOS reports.
        machine: architecture that this Python is built for.
        cores: cores that Python counts.
        memory_bytes: memory that Python reports.
    """
    fast, slow = mac.performance_cores, mac.efficiency_cores
    kinds = f" ({fast} performance, {slow} efficiency)" if fast and slow else ""
    name = f"macOS {mac.version} ({mac.build})"
    return SystemFacts(name, machine, mac.chip, f"{cores}{kinds}", mac.memory_bytes or memory_bytes, mac)


def _linux_name() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return f"{platform.system()} {platform.release()}"


def _linux_chip() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    return None


def _usable_cores(cores: int) -> int:
    """The cores that this process may use, which a container can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
