"""The checks of the machine and its software, in the order in which they are listed."""

from __future__ import annotations

from collections.abc import Callable

from mlx_dpo.doctor.backend_checks import check_blas, check_compiler, check_memory, check_mlx
from mlx_dpo.doctor.check import ENVIRONMENT_GROUP, CheckOutcome, MachineCheck
from mlx_dpo.doctor.disk_folders import (
    check_disk_space,
    check_hub_cache,
    check_open_files,
    check_own_cache,
    check_temporary_folder,
    check_working_folder,
)
from mlx_dpo.doctor.hub_checks import HubChecks
from mlx_dpo.doctor.machine_facts import MachineFacts
from mlx_dpo.doctor.macos import check_architecture, check_macos_version, check_wired_limit
from mlx_dpo.doctor.package_versions import check_packages, check_python, required_macos


def environment_checks(facts: MachineFacts, *, shows_user: bool = True) -> list[MachineCheck]:
    """The checks of a machine.

    Args:
        facts: what is known of it.
        shows_user: whether an outcome may name the user of the Hub.
    """
    working, own, hub_folder = facts.folders
    hub = HubChecks(shows_user=shows_user)
    checks: dict[str, Callable[[], CheckOutcome]] = {
        "python": check_python,
        "packages": check_packages,
        **_system_checks(facts),
        "mlx": lambda: check_mlx(facts.mlx, is_mac=facts.system.mac is not None),
        "memory": lambda: check_memory(facts.mlx, facts.system.memory_bytes),
        "disk space": lambda: check_disk_space(facts.folders),
        "working directory": lambda: check_working_folder(working),
        "mlx-dpo cache": lambda: check_own_cache(own),
        "hub cache": lambda: check_hub_cache(hub_folder, facts.is_offline),
        "temporary folder": lambda: check_temporary_folder(facts.temporary),
        "open files": check_open_files,
        "hub": hub.check_reach,
        "hub login": hub.check_login,
    }
    return [MachineCheck(name, ENVIRONMENT_GROUP, run) for name, run in checks.items()]


def _system_checks(facts: MachineFacts) -> dict[str, Callable[[], CheckOutcome]]:
    """The checks that only apply to macOS, or only to Linux."""
    mac = facts.system.mac
    if mac is not None:
        return {
            "architecture": lambda: check_architecture(mac, facts.system.machine),
            "macos": lambda: check_macos_version(mac, required_macos()),
            "wired limit": lambda: check_wired_limit(mac),
        }
    backend = facts.mlx.facts.backend if facts.mlx.facts else None
    return {
        "compiler": lambda: check_compiler(backend, facts.compiler),
        "blas": lambda: check_blas(backend, facts.blas),
    }
