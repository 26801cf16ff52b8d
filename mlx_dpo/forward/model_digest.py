"""Digests of all that determines a model's outputs: its code, settings and tensors, the versions and the device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_dpo.adapters.qa_lora import is_qa_lora
from mlx_dpo.utils.tensor_digest import tensor_digest


def tensor_digests(model: nn.Module, known: Mapping[str, str]) -> dict[str, str]:
    """The `tensor_digest` of every tensor of a model, by name.

    Args:
        model: the model.
        known: digests that need not be computed.
    """
    return {name: known.get(name) or tensor_digest(tensor) for name, tensor in tree_flatten(model.parameters())}


def model_digest(model: nn.Module, digests: Mapping[str, str], *more: str) -> hashlib.blake2b:
    """A digest of a model's code, settings and tensors, and of the versions and device that run them.

    An adapter whose B is zero changes nothing, so a model has the same digest with such an adapter and without.

    Args:
        model: the model.
        digests: its `tensor_digests`.
        more: further texts to digest.
    """
    digest = hashlib.blake2b(digest_size=16)
    settings = repr(vars(model.args)) if hasattr(model, "args") else ""
    device = mx.device_info().get("device_name", "")
    texts = [type(model).__module__, settings, version("mlx"), version("mlx-lm"), version("mlx-dpo"), device]
    for text in [*texts, " ".join([str(mx.default_device()), *more])]:
        digest.update(f"{text}\n".encode())
    for name, text in sorted(_without_zero_adapters(model, dict(digests)).items()):
        digest.update(f"{name} {text}\n".encode())
    return digest


def _without_zero_adapters(model: nn.Module, digests: dict[str, str]) -> dict[str, str]:
    """Digests by tensor name, with LoRA layers whose B is zero replaced by the layers that they adapt.

    DoRA layers stay, since they rescale the weights even if B is zero.
    """
    for layer, module in model.named_modules():
        if "lora_b" in module and "m" not in module and not mx.any(module["lora_b"]).item():
            inner = f"{layer}.embedding." if "embedding" in module else f"{layer}.linear."
            del digests[f"{layer}.lora_a"], digests[f"{layer}.lora_b"]
            digests = {name.replace(inner, f"{layer}."): digest for name, digest in digests.items()}
        elif is_qa_lora(module):  # computes something else than a LoRA layer with the same tensors
            digests[f"{layer}.on_grid"] = tensor_digest(mx.array(True))  # part of existing fingerprints: don't rename
    return digests
