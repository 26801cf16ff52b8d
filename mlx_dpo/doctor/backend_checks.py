"""Checks of what mlx computes with: the device, the compiler that its CPU backend calls, and the BLAS."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlx_dpo.doctor.check import COMMAND_LINE, CheckOutcome, failed, passed, skipped, warned
from mlx_dpo.doctor.mlx_probe import MlxFacts, MlxProbe
from mlx_dpo.utils.formatting import format_bytes
from mlx_dpo.utils.mlx_backend import install_hint

COMPILER = "g++"  # mlx's CPU backend for Linux calls it by this name
# A function that only this library exports, by its name. It is found if the library was loaded before mlx.
_FAST_BLAS = {"OpenBLAS": "openblas_get_config", "MKL": "MKL_Get_Version_String", "BLIS": "bli_info_get_version_str"}
_OPENBLAS_FILES = ("lib/*/openblas-pthread/libblas.so.3", "lib64/libopenblasp.so.0")  # Debian's and Fedora's, in /usr
LITTLE_MEMORY = 4e9  # bytes


def check_mlx(probe: MlxProbe, *, is_mac: bool) -> CheckOutcome:
    """Whether mlx computes at all, and on a Mac, whether on its GPU."""
    if probe.facts is None:
        return failed(probe.problem or "mlx does not run", _mlx_advice(probe.problem or ""))
    if not probe.facts.can_compute:
        return failed("the product of two small matrices is wrong", "Reinstall mlx: pip install --force-reinstall mlx.")
    device = describe_device(probe.facts)
    if is_mac and probe.facts.backend != "Metal":
        advice = "A virtual machine may have no GPU: train on the Mac itself. The CPU is many times slower."
        return warned(f"{device}, not the GPU", advice)
    return passed(device)


def describe_device(facts: MlxFacts) -> str:
    """The device in words, such as "Metal: Apple M1 Max, applegpu_g13s"."""
    names = dict.fromkeys(name for name in (facts.device, facts.architecture) if name)
    return f"{facts.backend}: {', '.join(names)}" if names else facts.backend


def _mlx_advice(problem: str) -> str:
    if "temp_directory_path" in problem:
        return "mlx needs a temporary folder; see the check of that name."
    if "No module named 'mlx" in problem or "libmlx" in problem:
        return install_hint()
    return (
        "Reinstall it (pip install --force-reinstall mlx), in an environment of its own. This shows the whole error:"
        f"{COMMAND_LINE}python -c 'import mlx.core as mx; print(mx.ones(2) + 1)'"
    )


def check_memory(probe: MlxProbe, memory_bytes: int) -> CheckOutcome:
    """How much memory a run may plan with."""
    if probe.facts is None:
        return skipped("mlx does not run")
    usable = probe.facts.usable_bytes
    detail = f"a run may plan with {format_bytes(usable)} of {format_bytes(memory_bytes)}"
    if usable < LITTLE_MEMORY:
        advice = (
            "Models of up to 1 to 2 billion parameters at 4 bits fit: see `mlx-dpo plan --config-only --model NAME`."
        )
        return warned(detail, advice)
    return passed(detail)


def check_compiler(backend: str | None, compiler: str | None) -> CheckOutcome:
    """Whether there is the compiler that mlx's CPU backend for Linux calls at run time.

    Args:
        backend: that mlx uses; None if mlx does not run.
        compiler: result of `find_compiler`.
    """
    if backend not in (None, "CPU"):
        return skipped(f"{backend} needs none")
    if compiler is None:
        return warned(
            f"{COMPILER} is missing: mlx runs element-wise operations one by one on the CPU, which is slower",
            f"Install it, such as with `apt-get install {COMPILER}` on Debian or Ubuntu.",
        )
    return passed(compiler)


def find_compiler() -> str | None:
    """Path of the compiler; None if there is none."""
    return shutil.which(COMPILER)


def check_blas(backend: str | None, blas: str | None) -> CheckOutcome:
    """Whether a fast BLAS is in the place of the one that mlx's wheel for Linux brings.

    Args:
        backend: that mlx uses; None if mlx does not run.
        blas: result of `preloaded_blas`.
    """
    if backend not in (None, "CPU"):
        return skipped(f"{backend} needs none")
    if blas is not None:
        return passed(f"{blas} is loaded before mlx's own")
    detail = "mlx's own BLAS computes float32 products, tens of times slower than OpenBLAS"
    installed = next(_installed_openblas(), None)
    if installed is not None:
        return warned(
            detail, f"OpenBLAS is installed; load it before mlx's own:{COMMAND_LINE}export LD_PRELOAD={installed}"
        )
    return warned(
        detail,
        "Install OpenBLAS, such as with `apt-get install libopenblas0-pthread` on Debian or Ubuntu, and load it before "
        f"mlx's own:{COMMAND_LINE}export LD_PRELOAD=$(ls /usr/lib/*/openblas-pthread/libblas.so.3)",
    )


def preloaded_blas() -> str | None:
    """The name of a fast BLAS that this process, and so those it starts, loaded before mlx; None if there is none."""
    loaded = ctypes.CDLL(None)
    return next((name for name, function in _FAST_BLAS.items() if hasattr(loaded, function)), None)


def _installed_openblas() -> Iterator[Path]:
    for pattern in _OPENBLAS_FILES:
        yield from sorted(Path("/usr").glob(pattern))
