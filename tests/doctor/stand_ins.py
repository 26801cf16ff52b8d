"""Machines that are not at hand: what macOS's commands print, and the facts of a Mac and of a Linux machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_dpo.doctor.disk_folders import DiskFolder
from mlx_dpo.doctor.machine_facts import MachineFacts
from mlx_dpo.doctor.macos import GIB, MacFacts, read_mac
from mlx_dpo.doctor.mlx_probe import MlxFacts, MlxProbe
from mlx_dpo.doctor.system_facts import SystemFacts, mac_system

M1_MAX = {  # as the manuals of sysctl, sw_vers and xcode-select show them
    "sysctl -n machdep.cpu.brand_string": "Apple M1 Max",
    "sysctl -n hw.perflevel0.physicalcpu": "8",
    "sysctl -n hw.perflevel1.physicalcpu": "2",
    "sysctl -n hw.memsize": str(32 * GIB),
    "sysctl -n iogpu.wired_limit_mb": "0",
    "sysctl -n sysctl.proc_translated": "0",
    "sw_vers -productVersion": "15.6",
    "sw_vers -buildVersion": "24G84",
    "xcode-select -p": "/Library/Developer/CommandLineTools",
}


def mac_output(**changed: str | None) -> Callable[[Sequence[str]], str | None]:
    """What commands print on an M1 Max with 32 GB; `wired_limit_mb="1"` changes the one whose words end with that."""
    printed: dict[str, str | None] = dict(M1_MAX)
    for ending, text in changed.items():
        (command,) = (command for command in printed if command.replace(".", "_").endswith(ending))
        printed[command] = text
    return lambda command: printed.get(" ".join(command))


def mac(**changed: str | None) -> MacFacts:
    return read_mac(mac_output(**changed))


def folder(name: str = "working directory", free: float = 80e9, problem: str | None = None) -> DiskFolder:
    return DiskFolder(name, Path("/data") / name, int(free), problem)


METAL = MlxFacts("Metal", "Apple M1 Max", "applegpu_g13s", 22_906_503_168, 16_034_552_217, True)
CPU = MlxFacts("CPU", "AMD EPYC", "x86_64", None, 17_693_551_411, True)


LINUX = SystemFacts("Debian GNU/Linux 12 (bookworm)", "x86_64", "AMD EPYC", "2", 25 * GIB)


def machine(system: SystemFacts = LINUX, probe: MlxProbe | None = None) -> MachineFacts:
    """A machine without a fault."""
    return MachineFacts(
        system=system,
        mlx=probe or MlxProbe(METAL if system.mac else CPU),
        versions={"python": "3.12.4", "mlx-dpo": "0.1.0", "mlx": "0.32.4"},
        folders=[folder(), folder("mlx-dpo cache"), folder("Hub cache")],
        temporary=DiskFolder("temporary folder", Path("/tmp"), int(80e9), None),
        compiler="/usr/bin/g++",
        blas="OpenBLAS",
        is_logged_in=False,
        is_offline=True,
    )


def mac_machine(machine_name: str = "arm64", **changed: str | None) -> MachineFacts:
    return machine(mac_system(mac(**changed), machine_name, 10, 32 * GIB))
