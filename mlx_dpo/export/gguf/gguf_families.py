"""What llama.cpp calls the models of an mlx-lm type, and where its conventions part from mlx-lm's.

The conventions are those of llama.cpp's convert_hf_to_gguf.py (conversion/llama.py, qwen.py, gemma.py in its sources).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.errors import UserError, Where
from mlx_dpo.forward.model_loading import LoadedModel


@dataclass(frozen=True)
class GGUFFamily:
    """How a file holds the models of one mlx-lm type.

    Attributes:
        architecture: llama.cpp's name for them.
        adjacent: rotary positions turn adjacent rows of q and k, where mlx-lm turns row i with row i + dims / 2.
        norms_plus_one: a norm's weight is stored as what it multiplies by, where mlx-lm adds one at run time.
    """

    architecture: str
    interleaved_rope: bool = False
    adds_one_to_norms: bool = False


GGUF_FAMILIES = {
    "llama": GGUFFamily("llama", interleaved_rope=True),
    "mistral": GGUFFamily("llama", interleaved_rope=True),
    "qwen2": GGUFFamily("qwen2"),
    "qwen3": GGUFFamily("qwen3"),
    "gemma": GGUFFamily("gemma", adds_one_to_norms=True),
    "gemma2": GGUFFamily("gemma2", adds_one_to_norms=True),
    "gemma3_text": GGUFFamily("gemma3", adds_one_to_norms=True),
    "gemma3": GGUFFamily("gemma3", adds_one_to_norms=True),
}
TEXT_MODEL_PREFIX = "language_model."  # around the text model of one that sees images too
GEMMA3_SLIDING_WINDOW_PATTERN = 6  # every sixth layer looks further than the window; llama.cpp has it built in


@dataclass(frozen=True)
class GGUFModelDescription:
    """A model with its family, and its parameters as mlx-lm resolved them from config.json."""

    family: GGUFFamily
    model_args: Any
    head_dim: int
    context_length: int
    sliding_window: int
    where: Where

    @classmethod
    def from_loaded_model(cls, loaded: LoadedModel) -> GGUFModelDescription:
        """Raises `UserError` where the type is not in the table, or llama.cpp would compute something else."""
        where, kind = Where(str(loaded.path)), loaded.config["model_type"]
        if kind not in GGUF_FAMILIES:
            known = ", ".join(GGUF_FAMILIES)
            raise UserError(
                f"models of type {kind!r} can't be written as GGUF", where=where, hint=f"Known are {known}."
            )
        args = loaded.model.language_model.args if kind == "gemma3" else loaded.model.args
        text = loaded.config | loaded.config.get("text_config", {})
        described = cls(
            family=GGUF_FAMILIES[kind],
            model_args=args,
            head_dim=getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads,
            context_length=getattr(args, "max_position_embeddings", None)
            or text.get("max_position_embeddings")
            or 8192,
            sliding_window=text.get("sliding_window") or 4096,
            where=where,
        )
        described._require_the_same_computation()
        return described

    @property
    def rope_scaling(self) -> dict[str, Any]:
        """The scaling of rotary positions, with its kind as `type`; empty for none."""
        scaling = getattr(self.model_args, "rope_scaling", None) or {}
        kind = scaling.get("type") or scaling.get("rope_type", "default")
        return {} if kind == "default" else {**scaling, "type": kind}

    @property
    def permutes_rope_rows(self) -> bool:
        """Whether rows of q and k are to be brought into llama.cpp's order."""
        return self.family.interleaved_rope and not getattr(self.model_args, "rope_traditional", False)

    def _require_the_same_computation(self) -> None:
        args = self.model_args
        if self.rope_scaling and self.rope_scaling["type"] not in ("linear", "llama3", "yarn"):
            self._refuse(f"its rotary scaling {self.rope_scaling['type']!r}")
        if getattr(args, "rope_traditional", False) and not self.family.interleaved_rope:
            self._refuse("its rope_traditional")
        if "sliding_attention" in (getattr(args, "layer_types", None) or []):
            self._refuse("its sliding window")
        if self.family.architecture == "gemma3" and args.sliding_window_pattern != GEMMA3_SLIDING_WINDOW_PATTERN:
            self._refuse(f"its sliding_window_pattern {args.sliding_window_pattern}")
        scalar = getattr(args, "query_pre_attn_scalar", self.head_dim)
        large = (self.family.architecture, args.num_hidden_layers) in (("gemma2", 46), ("gemma3", 62))
        if scalar != (args.hidden_size // args.num_attention_heads if large else self.head_dim):
            self._refuse(f"its query_pre_attn_scalar {scalar}")

    def _refuse(self, what: str) -> None:
        raise UserError(f"llama.cpp's {self.family.architecture} can't do {what}", where=self.where)


def add_parameters(writer: Any, model: GGUFModelDescription) -> None:
    """Write what llama.cpp builds the network from. `writer` is a gguf.GGUFWriter."""
    args = model.model_args
    writer.add_block_count(args.num_hidden_layers)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(args.hidden_size)
    writer.add_feed_forward_length(args.intermediate_size)
    writer.add_head_count(args.num_attention_heads)
    writer.add_head_count_kv(args.num_key_value_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(args.rms_norm_eps)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(args.rope_theta)
    if model.family.architecture == "gemma2":
        writer.add_attn_logit_softcapping(args.attn_logit_softcapping)
        writer.add_final_logit_softcapping(args.final_logit_softcapping)
        writer.add_sliding_window(model.sliding_window)  # which mlx-lm leaves out: the two part on longer texts
    if model.family.architecture == "gemma3":
        writer.add_sliding_window(args.sliding_window)  # the args' own, which may be a default
        writer.add_rope_freq_base_swa(args.rope_local_base_freq)
    _add_rope_scaling(writer, model.rope_scaling)


def _add_rope_scaling(writer: Any, rope: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    if rope.get("type") not in ("linear", "yarn"):  # llama3's is a tensor, see `rope_factors`
        return
    writer.add_rope_scaling_type(RopeScalingType(rope["type"]))
    writer.add_rope_scaling_factor(rope["factor"])
    if rope["type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def rope_factors(model: nn.Module, described: GGUFModelDescription) -> mx.array | None:
    """What Llama 3 divides each of its frequencies by [head_dim / 2], or None for other models."""
    if described.rope_scaling.get("type") != "llama3":
        return None
    dims = described.head_dim
    plain = described.model_args.rope_theta ** (np.arange(0, dims, 2) / dims)
    return mx.array(np.array(model.layers[0].self_attn.rope._freqs, np.float64) / plain, mx.float32)


def rope_row_permutation(name: str, rows: int, described: GGUFModelDescription) -> np.ndarray | None:
    """The order [rows] that llama.cpp wants the rows of a q or k tensor in, or None where it is mlx-lm's."""
    heads = {"q_proj": described.model_args.num_attention_heads, "k_proj": described.model_args.num_key_value_heads}
    layer = name.split(".")[-2]
    if layer not in heads or not described.permutes_rope_rows:
        return None
    return np.arange(rows).reshape(heads[layer], 2, -1).swapaxes(1, 2).reshape(-1)
