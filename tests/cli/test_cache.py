"""`mlx-dpo cache`: what reference log-probs are kept, and clearing them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.labeling.verdict_cache import VerdictCache
from mlx_dpo.reference.logp_cache import LogpCache, logp_cache_folder
from tests.cli.conftest import CommandResult


def test_it_shows_and_clears(
    mlx_dpo: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    batch = MicroBatch((0,), (((1, 2), (3,)), ((1, 2), (4, 5))))
    LogpCache("a", "Qwen/some-model").get_or_compute(batch, lambda _: np.array([-1.0, -2.0]))
    (logp_cache_folder() / "b.logps").write_bytes(b"torn")
    VerdictCache("identity", "a judge").add({b"k" * 16: 1.0})
    output = mlx_dpo("cache").out
    assert "some-model" in output and "damaged" in output and "a judge" in output and "1 verdict of judges" in output
    shown = json.loads(mlx_dpo("cache", "--json").out)
    assert shown["bytes"] > 0 and sorted(file["pairs"] for file in shown["files"]) == [0, 1]
    assert "Deleted 2 files" in mlx_dpo("cache", "--clear").out
    assert {"files": [], "verdicts": []}.items() <= json.loads(mlx_dpo("cache", "--json").out).items()
