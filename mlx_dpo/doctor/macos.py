"""What only macOS has: its version, the kinds of cores, Rosetta, the developer tools, and the limit of wired memory.

On Apple silicon the GPU uses the machine's memory, and macOS limits how much of it the GPU may wire, that is, keep from
being paged out: the kernel setting `iogpu.wired_limit_mb`. At its default, 0, macOS chooses the limit; Metal reports
the limit in force as the recommended working set.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_dpo.doctor.check import COMMAND_LINE, CheckOutcome, failed, passed, warned
from mlx_dpo.utils.formatting import format_bytes

Output = Callable[[Sequence[str]], "str | None"]  # of a system command, without the final newline; None if it failed

MIB, GIB = 2**20, 2**30
COMMAND_TIMEOUT = 10.0  # seconds
RESIDENT_WEIGHTS_VERSION = 15  # the first macOS on which mlx keeps the weights wired
# The smallest share of memory that macOS was seen to let the GPU wire at the default: two thirds on smaller machines.
LARGE_MEMORY, SMALL_SHARE, LARGE_SHARE = 36 * GIB, 2 / 3, 3 / 4
RESERVE, RESERVE_SHARE = 4 * GIB, 1 / 4  # that macOS needs for itself: the smaller of both


def command_output(command: Sequence[str]) -> str | None:
    """What a system command prints to stdout; None if it is missing or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


@dataclass(frozen=True)
class MacFacts:
    """What macOS reports.

    Attributes:
        version: such as "15.6".
        build: such as "24G84".
        chip: such as "Apple M1 Max".
        performance_cores: cores of the faster kind; None if unknown.
        efficiency_cores: cores of the slower kind; None if unknown.
        memory_bytes: of the machine; None if unknown.
        wired_limit_bytes: the limit that was set; 0 at macOS's default, None if this macOS has no such setting.
        is_translated: whether this process is Intel code on an Apple chip, run by Rosetta.
        has_developer_tools: whether Xcode or its command line tools are installed.
    """

    version: str
    build: str
    chip: str
    performance_cores: int | None
    efficiency_cores: int | None
    memory_bytes: int | None
    wired_limit_bytes: int | None
    is_translated: bool
    has_developer_tools: bool


def read_mac(output: Output = command_output) -> MacFacts:
    """Ask macOS.

    Args:
        output: runs a system command.
    """

    def number(name: str) -> int | None:
        text = output(["sysctl", "-n", name]) or ""
        return int(text) if text.isdigit() else None

    limit_mb = number("iogpu.wired_limit_mb")
    return MacFacts(
        version=output(["sw_vers", "-productVersion"]) or "",
        build=output(["sw_vers", "-buildVersion"]) or "",
        chip=output(["sysctl", "-n", "machdep.cpu.brand_string"]) or "unknown chip",
        performance_cores=number("hw.perflevel0.physicalcpu"),
        efficiency_cores=number("hw.perflevel1.physicalcpu"),
        memory_bytes=number("hw.memsize"),
        wired_limit_bytes=None if limit_mb is None else limit_mb * MIB,
        is_translated=number("sysctl.proc_translated") == 1,
        has_developer_tools=output(["xcode-select", "-p"]) is not None,  # prints a path, and opens no dialog
    )


def wired_limit_range(memory_bytes: int) -> tuple[int, int]:
    """Bytes from which to which a wired limit makes sense: not below macOS's default, and enough left for macOS."""
    default = memory_bytes * (LARGE_SHARE if memory_bytes >= LARGE_MEMORY else SMALL_SHARE)
    return int(default), int(memory_bytes - min(RESERVE, memory_bytes * RESERVE_SHARE))


def check_wired_limit(mac: MacFacts) -> CheckOutcome:
    """Whether the wired limit is macOS's default, or one that leaves enough to the GPU and to macOS."""
    limit, memory = mac.wired_limit_bytes, mac.memory_bytes
    if limit is None or memory is None:
        return warned("sysctl does not report iogpu.wired_limit_mb", "Update macOS if models are slow or don't fit.")
    if limit == 0:
        return passed("iogpu.wired_limit_mb=0, macOS's default")
    lowest, highest = wired_limit_range(memory)
    detail = f"iogpu.wired_limit_mb={limit // MIB}: {format_bytes(limit)} of {format_bytes(memory)} of memory"
    advice = (
        f"Return to macOS's default, 0, or, for a model that needs more, set a limit of up to {highest // MIB} (MB). "
        f"A restart resets it, unless /etc/sysctl.conf sets it.{COMMAND_LINE}sudo sysctl iogpu.wired_limit_mb=0"
    )
    if limit < lowest:
        return failed(f"{detail}, less than macOS's default: training gets less memory than there is", advice)
    if limit > highest:
        left = format_bytes(max(0, memory - limit))
        return failed(f"{detail}, which leaves {left} to macOS: the machine may freeze or restart", advice)
    return passed(detail)


def check_macos_version(mac: MacFacts, required: tuple[int, ...] | None) -> CheckOutcome:
    """Whether macOS is new enough for the installed mlx, and for weights that stay in memory.

    Args:
        mac: what macOS reports.
        required: the macOS version that the installed mlx is built for; None if unknown.
    """
    version = tuple(int(part) for part in mac.version.split(".") if part.isdigit())
    if not version:
        return warned("sw_vers does not report the version of macOS")
    if required and version < required:
        needed = ".".join(map(str, required))
        return failed(
            f"macOS {mac.version}; the installed mlx is built for macOS {needed} or newer",
            "Update macOS, or reinstall mlx in this environment with `pip install --force-reinstall mlx`.",
        )
    if version[0] < RESIDENT_WEIGHTS_VERSION:
        return warned(
            f"macOS {mac.version}: mlx keeps weights in memory from macOS {RESIDENT_WEIGHTS_VERSION} on only",
            "Update macOS if training with a large model is slow.",
        )
    return passed(f"macOS {mac.version} ({mac.build})")


def check_architecture(mac: MacFacts, machine: str) -> CheckOutcome:
    """Whether Python runs the chip's own instructions, as mlx needs.

    Args:
        mac: what macOS reports.
        machine: the architecture that this Python is built for.
    """
    if mac.is_translated:
        return failed(
            f"this Python is built for {machine} and runs under Rosetta on an Apple chip; mlx needs arm64",
            "Install a Python for Apple silicon, such as `uv python install` in a terminal that is not run under "
            "Rosetta, and install mlx-dpo again with it.",
        )
    if machine != "arm64":
        return failed(f"{machine}: mlx needs a Mac with Apple silicon", "Train on a Mac with an M1 or newer, or Linux.")
    return passed(f"{machine}, not translated by Rosetta")
