"""Attaching what an adapter spec describes to a model, and its trainable tensors."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_dpo.adapters.default_keys import adaptable_keys
from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.errors import UserError


def attach_adapter(model: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    """Freeze the model and add what `spec` says is trained. Returns the spec with layers and keys resolved.

    A spec without keys is taken as mlx-lm does, for adapter folders: all linear layers.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    try:
        model.freeze()
        total = len(model.layers)
    except AttributeError as error:
        raise UserError(f"mlx-lm can't freeze this model to train a part of it: {error}") from error
    count = total if spec.num_layers < 0 else min(spec.num_layers, total)
    if spec.fine_tune_type == "full":
        if spec.fuse_bits is not None:
            raise UserError("full fine-tuning leaves nothing to fuse", field="fuse_bits", hint="Leave it out.")
        if any(hasattr(m, "bits") for _, m in model.named_modules()):
            hint = "Use --fine-tune-type lora or dora, or a model that is not quantized."
            raise UserError("full fine-tuning can't train quantized weights", field="fine_tune_type", hint=hint)
        for layer in model.layers[total - count :]:
            layer.unfreeze()
        return AdapterSpec("full", count)
    keys = adaptable_keys(model, spec.fine_tune_type) if spec.keys is None else spec.keys
    dora = spec.fine_tune_type == "dora"
    parameters = {"rank": spec.rank, "scale": spec.scale, "dropout": spec.dropout, "keys": set(keys)}
    try:
        linear_to_lora_layers(model, count, parameters, use_dora=dora)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"mlx-lm can't attach {spec.fine_tune_type} to this model: {error}",
            hint="Name the layers to adapt with --lora-keys, or use --fine-tune-type lora.",
        ) from error
    if not tree_flatten(model.trainable_parameters()):
        names = sorted({k for layer in model.layers for k, m in layer.named_modules() if hasattr(m, "weight")})
        hint = "The layers of this model: " + ", ".join(names[:20])
        raise UserError("no layer of this model matches --lora-keys", field="lora_keys", hint=hint)
    if spec.fuse_bits is not None:
        from mlx_dpo.adapters.qa_lora import convert_to_qa_lora

        convert_to_qa_lora(model, spec.fuse_bits)
    return replace(spec, num_layers=count, keys=keys)


def trainable_tensors(model: nn.Module) -> Tensors:
    """The trained tensors by name."""
    return dict(tree_flatten(model.trainable_parameters()))


def neutral_tensors(model: nn.Module) -> Tensors:
    """The adapter tensors that would make the adapters on a model do nothing; empty if it has none."""
    tensors = {}
    for name, module in model.named_modules():
        if "lora_b" in module:
            tensors[f"{name}.lora_b"] = mx.zeros_like(module.lora_b)
        if "m" in module:  # DoRA's
            tensors[f"{name}.m"] = mx.linalg.norm(module._dequantized_weight().astype(mx.float32), axis=1)
    return tensors
