"""What is trained of a model: the contents of adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

Tensors = dict[str, mx.array]


@dataclass(frozen=True)
class AdapterSpec:
    """How a model is adapted; what adapter_config.json says, under mlx-lm's names, and one of ours.

    Attributes:
        fuse_bits: not None where the adapter is trained as it will be fused, see `on_grid`; mlx-lm doesn't look at it.
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
