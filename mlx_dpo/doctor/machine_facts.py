"""What is known of this machine: hardware, system, versions, folders and the login, without any secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_dpo.doctor.backend_checks import describe_device, find_compiler, preloaded_blas
from mlx_dpo.doctor.disk_folders import (
    DiskFolder,
    free_space_text,
    hub_cache,
    own_cache,
    temporary_folder,
    working_folder,
)
from mlx_dpo.doctor.mlx_probe import MlxProbe, probe_mlx
from mlx_dpo.doctor.package_versions import OWN_NAME, installed_versions
from mlx_dpo.doctor.system_facts import SystemFacts, read_system
from mlx_dpo.utils.formatting import format_bytes


@dataclass(frozen=True)
class MachineFacts:
    """The machine that this process runs on.

    Attributes:
        system: operating system and hardware.
        mlx: what mlx reports of its device, or why it does not run.
        versions: of Python and the packages, by name.
        folders: where runs, caches and downloads are written to.
        temporary: where mlx compiles for the CPU.
        compiler: the compiler of mlx's CPU backend; None if there is none.
        blas: a fast BLAS in the place of mlx's own; None if there is none.
        is_logged_in: whether there is a token of the Hub.
        is_offline: whether HF_HUB_OFFLINE is set.
    """

    system: SystemFacts
    mlx: MlxProbe
    versions: Mapping[str, str]
    folders: Sequence[DiskFolder]
    temporary: DiskFolder
    compiler: str | None
    blas: str | None
    is_logged_in: bool
    is_offline: bool

    def to_mapping(self) -> dict[str, Any]:
        """Return the facts as plain values: sizes in bytes, None where something is unknown or does not apply."""
        mac, device = self.system.mac, self.mlx.facts
        return {
            "system": self.system.system,
            "architecture": self.system.machine,
            "chip": self.system.chip,
            "cores": self.system.cores,
            "memory_bytes": self.system.memory_bytes,
            "device": None if device is None else vars(device),
            "wired_limit_bytes": mac.wired_limit_bytes if mac else None,
            "versions": dict(self.versions),
            "folders": [
                {"name": folder.name, "path": str(folder.path), "free_bytes": folder.free_bytes}
                for folder in (*self.folders, self.temporary)
            ],
            "compiler": self.compiler,
            "blas": self.blas,
            "developer_tools": mac.has_developer_tools if mac else None,
            "hub": {"logged_in": self.is_logged_in, "offline": self.is_offline},
        }

    def lines(self) -> dict[str, str]:
        """Return the facts for people, by label."""
        system, device, mac = self.system, self.mlx.facts, self.system.mac
        versions = [f"{name} {version}" for name, version in self.versions.items() if name != OWN_NAME]
        lines = {
            OWN_NAME: self.versions[OWN_NAME],
            "system": f"{system.system}, {system.machine}",
            "chip": f"{system.chip}, {system.cores} cores, {format_bytes(system.memory_bytes)} of memory",
            "device": "unknown: mlx does not run" if device is None else describe_device(device),
        }
        if device is not None:
            lines["memory"] = f"a run may plan with {format_bytes(device.usable_bytes)}"
            if device.recommended_bytes:
                lines["memory"] += f"; the GPU may wire {format_bytes(device.recommended_bytes)}"
        if mac is not None:
            lines["wired limit"] = (
                f"iogpu.wired_limit_mb={mac.wired_limit_bytes >> 20}"
                + ("" if mac.wired_limit_bytes else ", the default")
                if mac.wired_limit_bytes is not None
                else "unknown"
            )
            lines["Xcode tools"] = "installed" if mac.has_developer_tools else "not installed (not needed)"
        else:
            lines["compiler"] = self.compiler or "none"
            lines["BLAS"] = self.blas or "mlx's own"
        lines["versions"] = ", ".join(versions)
        lines["disk"] = free_space_text(self.folders)
        lines["Hub"] = ("logged in" if self.is_logged_in else "not logged in") + (
            ", offline" if self.is_offline else ""
        )
        return lines


def read_machine() -> MachineFacts:
    """Collect the facts; takes a second or two, and asks nothing of the network."""
    from huggingface_hub import is_offline_mode

    from mlx_dpo.utils.hub_client import is_logged_in

    return MachineFacts(
        system=read_system(),
        mlx=probe_mlx(),
        versions=installed_versions(),
        folders=(working_folder(), own_cache(), hub_cache()),
        temporary=temporary_folder(),
        compiler=find_compiler(),
        blas=preloaded_blas(),
        is_logged_in=is_logged_in(),
        is_offline=is_offline_mode(),
    )
