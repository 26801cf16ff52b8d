"""LoRA, DoRA or full fine-tuning settings, as stored in adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

Tensors = dict[str, mx.array]


@dataclass(frozen=True)
class AdapterSpec:
    """The settings in adapter_config.json: mlx-lm's, under its names, and `fuse_bits`.

    Attributes:
        fine_tune_type: "lora", "dora" or "full".
        num_layers: how many of the last blocks are adapted; -1: all.
        rank: of the LoRA factors.
        scale: factor of A B in the forward pass (alpha / rank in PEFT's terms).
        dropout: probability of dropping an input of the adapter.
        keys: names of the adapted layers within a block; None: all linear layers, as in mlx-lm.
        fuse_bits: bits of the base's quantized layers if the adapter is trained as it will be fused (see
            `adapters/qa_lora.py`), else None. mlx-lm ignores it.
    """

    fine_tune_type: str
    num_layers: int
    rank: int = 8
    scale: float = 20.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None
    fuse_bits: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields of adapter_config.json."""
        lora = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout}
        if self.keys is not None:
            lora["keys"] = list(self.keys)  # type: ignore[assignment]
        config = {"fine_tune_type": self.fine_tune_type, "num_layers": self.num_layers, "lora_parameters": lora}
        return config if self.fuse_bits is None else {**config, "fuse_bits": self.fuse_bits}
