"""Shared by the benchmarks: measuring in a child process, and a description of the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache"
BLAS = ("/usr/lib/*/openblas-pthread/libblas.so.3", "/usr/lib64/libopenblasp.so.0")  # as in the Makefile


class MeasurementFailed(Exception):
    """A measuring process ended without a result; the message has the end of its log."""


def print_status(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def measure(python: str | Path, script: str, *arguments: object) -> dict[str, Any]:
    """The JSON object that a script of this folder prints, run in a process of its own. Raises `Failed`."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile("w+") as log:
        command = [str(python), str(HERE / script), *map(str, arguments)]
        environment = {**with_blas(), "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, check=False)
        log.seek(0)
        lines = log.read().splitlines()
    print_status(f"  {time.perf_counter() - began:.1f} s")
    if done.returncode:
        raise MeasurementFailed(f"{script} ended with {done.returncode}\n" + "\n".join(lines[-15:]))
    return json.loads(done.stdout.splitlines()[-1])


def make_case(folder: Path, flags: list[str]) -> None:
    """A case in a folder, made in a process of its own."""
    subprocess.run([sys.executable, HERE / "case.py", folder, *flags], env=with_blas(), check=True)


def with_blas() -> dict[str, str]:
    """The environment with OpenBLAS in front, on a Linux machine that has it."""
    library = openblas()
    before = os.environ.get("LD_PRELOAD", "")
    if library is None or library in before:
        return dict(os.environ)
    return {**os.environ, "LD_PRELOAD": f"{library}:{before}" if before else library}


def restart_with_blas() -> None:
    """Start this program again with OpenBLAS in front, where the machine has it and it is not there yet."""
    environment = with_blas()
    if environment.get("LD_PRELOAD") != os.environ.get("LD_PRELOAD"):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def openblas() -> str | None:
    """OpenBLAS's library on a Linux machine, or None."""
    if sys.platform != "linux":
        return None
    return next((str(file) for pattern in BLAS for file in sorted(Path("/").glob(pattern[1:]))), None)


def resident_peak() -> float:
    """This process's peak memory as the system counts it, with Python and all libraries, in MB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def machine() -> dict[str, Any]:
    """Properties of the machine that measurements depend on."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "blas": openblas(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
    }


def _processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(*names: str) -> dict[str, str]:
    """The installed versions of some packages."""
    return {name: metadata.version(name) for name in names}


def write_json(file: Path, value: dict[str, Any]) -> None:
    """A result, with the machine, the command and the time it was made."""
    made = {"command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d %H:%M %Z")}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**made, **value}, indent=2) + "\n")
    print_status(f"wrote {file}")
