"""A model's or an adapter's file cut short or with a bit turned: a sentence that names it, or numbers."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

import pytest

from mlx_dpo import TrainConfig, UserError, evaluate
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of

FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
ADAPTER_FILES = ("adapters.safetensors", "adapter_config.json")
PLACES = 10


def measured(model: Path, adapter: Path | None) -> dict[str, float] | None:
    """Metrics of two pairs, or None where the folder is refused in a sentence that names it."""
    try:
        return evaluate(TrainConfig(model=str(model)), adapter_path=adapter, rows=rows_of(PAIRS)[:2])
    except UserError as error:
        text = str(error)
        assert str(model) in text or (adapter and str(adapter) in text) or error.field or error.where, text
        assert "Traceback" not in text and len(text) < 1000
        return None


@pytest.mark.parametrize("file", [*FILES, *ADAPTER_FILES])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_files(tmp_path: Path, file: str, damage: str) -> None:
    model = Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))
    adapter = Path(shutil.copytree(TRL / "adapter", tmp_path / "adapter")) if file in ADAPTER_FILES else None
    whole = measured(model, adapter)
    assert whole is not None
    path = (adapter or model) / file
    content, rng, refused = path.read_bytes(), random.Random(file + damage), 0
    for i in range(PLACES):
        at = len(content) * i // PLACES if damage == "cut" else rng.randrange(len(content))
        changed = (
            content[:at]
            if damage == "cut"
            else content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        )
        path.write_bytes(changed)
        found = measured(model, adapter)
        if found is None:
            refused += 1
        elif damage == "cut":
            assert found == whole, at
        else:  # a weight is another number now, which nothing can tell from a model of that weight
            assert all(math.isfinite(value) or name for name, value in found.items())
    assert refused >= (PLACES - 1 if damage == "cut" else 0)
