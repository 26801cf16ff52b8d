"""The bundled tiny model and its preference pairs, for the demo and for tests.

`python -m mlx_dpo.demo.make_model` makes both.
"""

from __future__ import annotations

import json
from pathlib import Path

MODEL = Path(__file__).parent / "model"
PAIRS = Path(__file__).parent / "pairs"


def load_pairs(split: str = "train") -> list[dict[str, str]]:
    """The rows of pairs/train.jsonl or pairs/valid.jsonl: prompt, chosen (a polite answer), rejected (a curt one)."""
    lines = (PAIRS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


__all__ = ["MODEL", "PAIRS", "load_pairs"]
