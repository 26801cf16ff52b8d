"""Whether mlx's operations give the right numbers on this machine, and how training avoids those that don't.

The operations that a training pass consists of are compared with plain ones, forward and gradient, on small inputs: a
fraction of a second, once for each machine and version of mlx. The outcome is kept in ~/.cache/mlx-dpo/backend. Inputs
are drawn from a generator of their own, so mlx's random state stays as it is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_dpo.errors import UserError
from mlx_dpo.forward.attention_check import fused_attention_problem
from mlx_dpo.forward.device import numpy_writes_through, runs_on_cpu
from mlx_dpo.forward.operation_checks import (
    normalization_problem,
    product_problem,
    quantized_product_problem,
    rotary_embedding_problem,
)
from mlx_dpo.forward.path_cache import own_code_digest
from mlx_dpo.utils.cache_folder import cache_folder
from mlx_dpo.utils.checked_file import read_checked, write_checked


@dataclass(frozen=True)
class BackendCheck:
    """A comparison of an operation of the backend with a plain one.

    Attributes:
        name: what is checked, for display.
        find_problem: what differs, with numbers; None if nothing does.
        safe_path: what training does instead if there is a problem; None if it can't avoid the operation.
        packages: names of the packages of which another version may not have the problem.
    """

    name: str
    find_problem: Callable[[], str | None]
    safe_path: str | None = None
    packages: str = "mlx"

    @property
    def advice(self) -> str:
        """What training does if there is a problem, and what to do about it."""
        effect = f"Training avoids it: {self.safe_path}." if self.safe_path else "Training can't avoid it, and stops."
        return f"{effect} Install another version of {self.packages}, and report this one ({_versions()})."


def _versions() -> str:
    return f"mlx {version('mlx')}, numpy {np.__version__}"


def write_through_problem() -> str | None:
    """What is wrong with numpy and mlx where they share memory; None where nothing is, or they don't."""
    if numpy_writes_through() or not (runs_on_cpu() or mx.metal.is_available()):
        return None
    return "an array of mlx that numpy has written to keeps its values: numpy got a copy, though both use one memory"


FUSED_ATTENTION = BackendCheck(
    "fused attention",
    fused_attention_problem,
    "it computes attention in plain operations, which takes more memory and time",
)
NUMPY_WRITE_THROUGH = BackendCheck(
    "numpy write-through",
    write_through_problem,
    "it runs each forward pass twice, and computes softmaxes with mlx",
    "numpy or mlx",
)
BACKEND_CHECKS = (
    FUSED_ATTENTION,
    NUMPY_WRITE_THROUGH,
    BackendCheck("matrix products", product_problem),
    BackendCheck("quantized products", quantized_product_problem),
    BackendCheck("normalization", normalization_problem),
    BackendCheck("rotary position embedding", rotary_embedding_problem),
)


@cache
def backend_problems() -> dict[str, str]:
    """What is wrong on this machine: the problem of each failed check, by its name.

    What numpy does is tried in each process, which takes a millisecond; the rest is read from disk where it is known.
    """
    path, key = backend_cache_file(), _backend_key()
    known = None if _is_replaced() else read_checked(path, key)
    if known is None:
        problems = {check.name: check.find_problem() for check in BACKEND_CHECKS if check is not NUMPY_WRITE_THROUGH}
        known = {"problems": {name: problem for name, problem in problems.items() if problem}}
        if not _is_replaced():
            write_checked(path, key, known)
    problem = write_through_problem()
    return {**known["problems"], **({NUMPY_WRITE_THROUGH.name: problem} if problem else {})}


def has_problem(check: BackendCheck) -> bool:
    """Whether a check failed on this machine."""
    return check.name in backend_problems()


def require_usable_backend() -> list[str]:
    """Check that training can avoid every operation that is wrong on this machine.

    Returns:
        A sentence for the user on each operation that is avoided.

    Raises:
        UserError: one can't be avoided.
    """
    notes = []
    for check in BACKEND_CHECKS:
        problem = backend_problems().get(check.name)
        if not problem:
            continue
        text = f"the check of {check.name} failed on this machine: {problem}"
        if check.safe_path is None:
            raise UserError(text, hint=f"{check.advice} `mlx-dpo doctor` makes all checks.")
        notes.append(f"{text}. {check.advice} `mlx-dpo doctor` makes all checks.")
    return notes


def backend_cache_file() -> Path:
    """Where the outcome is kept."""
    return cache_folder("backend") / "checks.json"


def _is_replaced() -> bool:
    """Whether an operation was replaced in this process: the outcome then holds for this process only."""
    return any(map(isfunction, (mx.fast.scaled_dot_product_attention, mx.fast.rms_norm, mx.fast.rope)))


def _backend_key() -> str:
    info, library = mx.device_info(), Path(mx.__file__).stat()
    system = os.uname()
    texts = [version("mlx"), str(library.st_size), str(library.st_mtime_ns), str(mx.default_device())]
    texts += [str(info.get(name, "")) for name in ("device_name", "architecture")]
    texts += [system.sysname, system.release, system.machine, own_code_digest()]
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()
