"""What mlx reports of its device, and whether it computes: tried in a process of its own.

mlx can end the process it runs in, without an exception: on a processor or a macOS that its binaries are not built for,
or where Metal finds no GPU.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROBE_TIMEOUT = 60.0  # seconds; the first use of Metal after a restart takes some
_SIZE = 64  # of the square matrices that are multiplied


@dataclass(frozen=True)
class MlxFacts:
    """What mlx reports of its device.

    Attributes:
        backend: "Metal", "CUDA" or "CPU".
        device: name of the device; None if mlx has none.
        architecture: of the device; None if mlx has none.
        recommended_bytes: the working set that Metal recommends, which is the wired limit in force; None elsewhere.
        usable_bytes: memory that a run may plan with.
        can_compute: whether a product, compiled and not, was right.
    """

    backend: str
    device: str | None
    architecture: str | None
    recommended_bytes: int | None
    usable_bytes: int
    can_compute: bool


@dataclass(frozen=True)
class MlxProbe:
    """The outcome of trying mlx: what it reports, or what went wrong."""

    facts: MlxFacts | None
    problem: str | None = None


def probe_mlx() -> MlxProbe:
    """Try mlx in a process of its own."""
    command = [sys.executable, "-m", __name__]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT)
    except subprocess.TimeoutExpired:
        return MlxProbe(None, f"mlx did not finish a product of two matrices in {PROBE_TIMEOUT:.0f} s")
    if run.returncode == 0:
        with_facts: Mapping[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return MlxProbe(MlxFacts(**with_facts))
    return MlxProbe(None, describe_exit(run.returncode, run.stderr))


def describe_exit(code: int, stderr: str) -> str:
    """How a process that failed ended, with the last line that it printed.

    Args:
        code: its exit code; negative for a signal.
        stderr: what it printed.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    if code >= 0:
        return last
    return f"ended by {signal.Signals(-code).name}" + (f": {last}" if lines else "")


def read_mlx() -> MlxFacts:
    """Ask mlx for its device, and multiply two matrices; in this process."""
    import mlx.core as mx

    from mlx_dpo.forward.device import runs_on_cpu, usable_memory

    info = mx.device_info()
    backend = "Metal" if mx.metal.is_available() else "CUDA" if mx.cuda.is_available() else "CPU"
    ones = mx.ones((_SIZE, _SIZE))
    doubled = mx.compile(lambda matrix: 2 * matrix @ matrix + mx.exp(0 * matrix) - 1)(ones)
    recommended = info.get("max_recommended_working_set_size")
    return MlxFacts(
        backend="CPU" if runs_on_cpu() else backend,
        device=_text(info.get("device_name")),
        architecture=_text(info.get("architecture")),
        recommended_bytes=int(recommended) if recommended else None,
        usable_bytes=usable_memory(),
        can_compute=bool(((ones @ ones == _SIZE) & (doubled == 2 * _SIZE)).all().item()),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


if __name__ == "__main__":
    print(json.dumps(vars(read_mlx())))
