"""llama.cpp's names for mlx-lm's model types, and the differences between their conventions.

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
    """How GGUF files hold the models of one mlx-lm type.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        interleaved_rope: rotary embeddings rotate adjacent rows of q and k; mlx-lm rotates row i with row
            i + head_dim / 2.
        adds_one_to_norms: a norm's stored weight includes the 1 that mlx-lm adds at run time.
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
TEXT_MODEL_PREFIX = "language_model."  # of the text model's weights in a vision model
GEMMA3_SLIDING_WINDOW_PATTERN = 6  # every sixth layer has global attention; fixed in llama.cpp


@dataclass(frozen=True)
class GGUFModelDescription:
    """A model's family and parameters.

    Attributes:
        family: how GGUF files hold such models.
        model_args: the parameters as mlx-lm resolved them from config.json.
        head_dim: dimensions of an attention head.
        context_length: longest context, in tokens.
        sliding_window: size of the attention window, in tokens.
        where: the model's folder, for messages.
    """

    family: GGUFFamily
    model_args: Any
    head_dim: int
    context_length: int
    sliding_window: int
    where: Where

    @classmethod
    def from_loaded_model(cls, loaded: LoadedModel) -> GGUFModelDescription:
        """Describe a model.

        Raises:
            UserError: its type is not in `GGUF_FAMILIES`, or llama.cpp would compute something else.
        """
        where, model_type = Where(str(loaded.path)), loaded.config["model_type"]
        if model_type not in GGUF_FAMILIES:
            hint = f"Supported types: {', '.join(GGUF_FAMILIES)}."
            raise UserError(f"models of type {model_type!r} can't be written as GGUF", where=where, hint=hint)
        args = loaded.model.language_model.args if model_type == "gemma3" else loaded.model.args
        text_config = loaded.config | loaded.config.get("text_config", {})
        max_positions = getattr(args, "max_position_embeddings", None) or text_config.get("max_position_embeddings")
        description = cls(
            family=GGUF_FAMILIES[model_type],
            model_args=args,
            head_dim=getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads,
            context_length=max_positions or 8192,
            sliding_window=text_config.get("sliding_window") or 4096,
            where=where,
        )
        if feature := description._unsupported_feature():
            raise UserError(f"llama.cpp's {description.family.architecture} does not support {feature}", where=where)
        return description

    @property
    def rope_scaling(self) -> dict[str, Any]:
        """The scaling of rotary positions, with its kind as `type`; empty for none."""
        scaling = getattr(self.model_args, "rope_scaling", None) or {}
        kind = scaling.get("type") or scaling.get("rope_type", "default")
        return {} if kind == "default" else {**scaling, "type": kind}

    @property
    def permutes_rope_rows(self) -> bool:
        """Whether the rows of q and k have to be permuted into llama.cpp's order."""
        return self.family.interleaved_rope and not getattr(self.model_args, "rope_traditional", False)

    def _unsupported_feature(self) -> str | None:
        """The first feature of the model that llama.cpp would compute differently."""
        args, architecture = self.model_args, self.family.architecture
        if self.rope_scaling and self.rope_scaling["type"] not in ("linear", "llama3", "yarn"):
            return f"its rotary scaling {self.rope_scaling['type']!r}"
        if getattr(args, "rope_traditional", False) and not self.family.interleaved_rope:
            return "its rope_traditional"
        if "sliding_attention" in (getattr(args, "layer_types", None) or []):
            return "its sliding window"
        if architecture == "gemma3" and args.sliding_window_pattern != GEMMA3_SLIDING_WINDOW_PATTERN:
            return f"its sliding_window_pattern {args.sliding_window_pattern}"
        is_largest = (architecture, args.num_hidden_layers) in (("gemma2", 46), ("gemma3", 62))
        scalar = getattr(args, "query_pre_attn_scalar", self.head_dim)
        if scalar != (args.hidden_size // args.num_attention_heads if is_largest else self.head_dim):
            return f"its query_pre_attn_scalar {scalar}"
        return None


def add_parameters(writer: Any, model: GGUFModelDescription) -> None:
    """Write the parameters that llama.cpp builds the network from.

    Args:
        writer: a gguf.GGUFWriter.
        model: the model's description.
    """
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
        writer.add_sliding_window(model.sliding_window)  # mlx-lm ignores it, so the two differ on longer texts
    if model.family.architecture == "gemma3":
        writer.add_sliding_window(args.sliding_window)  # from args, where it may be a default
        writer.add_rope_freq_base_swa(args.rope_local_base_freq)
    _add_rope_scaling(writer, model.rope_scaling)


def rope_factors(model: nn.Module, description: GGUFModelDescription) -> mx.array | None:
    """Llama 3's divisors of the rotary frequencies [head_dim / 2]; None for other models."""
    if description.rope_scaling.get("type") != "llama3":
        return None
    dims = description.head_dim
    unscaled = description.model_args.rope_theta ** (np.arange(0, dims, 2) / dims)
    return mx.array(np.array(model.layers[0].self_attn.rope._freqs, np.float64) / unscaled, mx.float32)


def rope_row_permutation(name: str, num_rows: int, description: GGUFModelDescription) -> np.ndarray | None:
    """Return llama.cpp's order of the rows of a q or k tensor.

    Args:
        name: the tensor's name in mlx-lm.
        num_rows: number of its rows.
        description: the model.

    Returns:
        [num_rows] indices of mlx-lm's rows; None if the order is the same.
    """
    args = description.model_args
    num_heads = {"q_proj": args.num_attention_heads, "k_proj": args.num_key_value_heads}.get(name.split(".")[-2])
    if num_heads is None or not description.permutes_rope_rows:
        return None
    return np.arange(num_rows).reshape(num_heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _add_rope_scaling(writer: Any, rope_scaling: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    if rope_scaling.get("type") not in ("linear", "yarn"):  # llama3's is a tensor, see `rope_factors`
        return
    writer.add_rope_scaling_type(RopeScalingType(rope_scaling["type"]))
    writer.add_rope_scaling_factor(rope_scaling["factor"])
    if rope_scaling["type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope_scaling["original_max_position_embeddings"])
