"""What differs between Metal, CUDA and the CPU: memory, wired weights, and whether numpy may write into mlx arrays."""

from __future__ import annotations

import os
import re
from functools import cache

import mlx.core as mx
import numpy as np

from mlx_dpo.errors import UserError

USABLE_SHARE = 0.7
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def usable_memory() -> int:
    """Bytes that training may plan with: a share of what Metal recommends, the GPU has, or the machine."""
    info = mx.device_info()
    reported = info.get("max_recommended_working_set_size") or info.get("total_memory") or info.get("memory_size")
    return int(USABLE_SHARE * int(reported or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))


def parse_memory(text: str) -> int:
    """Bytes of a size like 12GB, 800MB or 16GiB; a number alone, of a million or more, is bytes. Raises `UserError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match.group(2).upper() if match else None
    if match is None or (unit not in _UNITS and f"{unit}B" not in _UNITS):
        raise UserError(f"{text!r} is not a size", field="memory_limit", hint="Write it like 12GB or 800MB.")
    size = int(float(match.group(1)) * (_UNITS.get(unit or "") or _UNITS[f"{unit}B"]))
    if size < 1:
        raise UserError(f"{text!r} must be greater than 0", field="memory_limit", hint="Write it like 12GB or 800MB.")
    if not unit and size < 1e6:  # GB may have been meant
        raise UserError(f"{text!r} has no unit", field="memory_limit", hint="Write it like 12GB or 800MB.")
    return size


def keep_weights_resident() -> None:
    """On Metal, wire the recommended working set, so that macOS does not page the weights out. Elsewhere do nothing."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended and mx.metal.is_available():
        mx.set_wired_limit(int(recommended))


def runs_on_cpu() -> bool:
    """Whether mlx computes on the CPU."""
    return mx.default_device().type == mx.DeviceType.cpu


@cache
def numpy_writes_through() -> bool:
    """Whether what numpy writes into an evaluated array is seen by mlx operations that are evaluated afterwards.

    It is tried out once: it holds where CPU and GPU share memory, and depends on how the backend exports arrays.
    """
    array = mx.zeros((256, 256))
    doubled = 2 * array  # built before, evaluated after, as the backward pass is
    mx.eval(array)
    try:
        view = np.array(array, copy=False)
    except ValueError:  # it can't be had without a copy
        return False
    if not view.flags.writeable:
        return False
    view[:] = 1
    return bool((doubled == 2).all().item())


def numpy_computes() -> bool:
    """Whether numpy computes in mlx's own buffers where it is faster than mlx: on the CPU, if it can write there."""
    return runs_on_cpu() and numpy_writes_through()
