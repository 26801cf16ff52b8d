"""What differs between machines, against stand-ins for those this one is not."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo import UserError
from mlx_dpo.forward import device


def report(monkeypatch: pytest.MonkeyPatch, **info: int) -> None:
    monkeypatch.setattr(mx, "device_info", lambda *_: info)


def test_usable_memory_is_a_share_of_what_metal_recommends_then_the_gpus_then_the_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report(monkeypatch, max_recommended_working_set_size=120, memory_size=160)
    assert device.usable_memory() == 84
    report(monkeypatch, total_memory=80)
    assert device.usable_memory() == 56
    report(monkeypatch)
    assert device.usable_memory() > 1 << 30


def test_metal_keeps_the_recommended_working_set_wired(monkeypatch: pytest.MonkeyPatch) -> None:
    wired: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    report(monkeypatch, max_recommended_working_set_size=12)
    device.keep_weights_resident()
    assert wired == [12]
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    device.keep_weights_resident()
    report(monkeypatch)
    device.keep_weights_resident()
    assert wired == [12]


@pytest.mark.parametrize(
    ("text", "size"), [("12GB", 12e9), ("800 mb", 8e8), ("16GiB", 1 << 34), ("1.5g", 1.5e9), ("4096000", 4096000)]
)
def test_sizes(text: str, size: float) -> None:
    assert device.parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "lots", "12XB", "-1GB", "0", "1e3", "16"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="memory_limit"):
        device.parse_memory(text)


def test_numpy_writes_through_on_this_machine_and_not_where_arrays_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.numpy_writes_through()
    device.numpy_writes_through.cache_clear()
    monkeypatch.setattr(device.np, "array", lambda array, copy: np.ones(array.shape))  # a copy, as from a discrete GPU
    assert not device.numpy_writes_through()
    device.numpy_writes_through.cache_clear()
