"""What tells one policy from another: a digest of all that its log-probs follow from, whatever folder it came from."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_dpo.adapters.qa_lora import is_qa_lora
from mlx_dpo.forward.network import Network
from mlx_dpo.utils.tensor_digest import tensor_digest


def fingerprint(network: Network) -> str:
    """A hexadecimal digest of the model's code, settings and tensors, and of what computes with them.

    An adapter whose B is zero adds nothing, so that all fresh adapters, and none, have the same.
    """
    model = network.model
    digest = hashlib.blake2b(digest_size=16)
    settings = repr(vars(model.args)) if hasattr(model, "args") else ""
    device = mx.device_info().get("device_name", "")
    for said in (type(model).__module__, settings, version("mlx"), version("mlx-lm"), version("mlx-dpo"), device):
        digest.update(f"{said}\n".encode())
    digest.update(f"{mx.default_device()} {network.sharing.name}\n".encode())
    whole = network.shards.tensor_digests if network.shards else {}
    tensors = {name: whole.get(name) or tensor_digest(v) for name, v in tree_flatten(model.parameters())}
    for name, said in sorted(_without_silent_adapters(model, tensors).items()):
        digest.update(f"{name} {said}\n".encode())
    return digest.hexdigest()


def _without_silent_adapters(model: nn.Module, tensors: dict[str, str]) -> dict[str, str]:
    """What is said of tensors, as if LoRA layers whose B is zero were those they adapt. DoRA rescales even then."""
    for layer, module in model.named_modules():
        if "lora_b" in module and "m" not in module and not mx.any(module["lora_b"]).item():
            inner = f"{layer}.embedding." if "embedding" in module else f"{layer}.linear."
            del tensors[f"{layer}.lora_a"], tensors[f"{layer}.lora_b"]
            tensors = {name.replace(inner, f"{layer}."): said for name, said in tensors.items()}
        elif is_qa_lora(module):  # these tensors make another policy than in a plain adapter
            tensors[f"{layer}.on_grid"] = tensor_digest(mx.array(True))
    return tensors
