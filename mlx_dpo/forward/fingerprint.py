"""A policy's fingerprint: a digest of everything that its log-probs depend on, whatever folder it was loaded from."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_dpo.adapters.qa_lora import is_qa_lora
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.utils.tensor_digest import tensor_digest

# In existing fingerprints, so not to be changed.
_SHARING_TAGS = {PromptSharing.ANY_PROMPTS: "ANY", PromptSharing.ONE_PROMPT: "ONE", PromptSharing.NONE: "NONE"}


def fingerprint(network: Network) -> str:
    """A hexadecimal digest of a model's code, settings and tensors, and of the versions and device that run them.

    An adapter whose B is zero changes nothing, so a model has the same fingerprint with such an adapter and without.
    """
    model = network.model
    digest = hashlib.blake2b(digest_size=16)
    settings = repr(vars(model.args)) if hasattr(model, "args") else ""
    device = mx.device_info().get("device_name", "")
    for text in (type(model).__module__, settings, version("mlx"), version("mlx-lm"), version("mlx-dpo"), device):
        digest.update(f"{text}\n".encode())
    digest.update(f"{mx.default_device()} {_SHARING_TAGS[network.sharing]}\n".encode())
    unsharded = network.shards.tensor_digests if network.shards else {}
    tensors = {name: unsharded.get(name) or tensor_digest(v) for name, v in tree_flatten(model.parameters())}
    for name, text in sorted(_without_zero_adapters(model, tensors).items()):
        digest.update(f"{name} {text}\n".encode())
    return digest.hexdigest()


def _without_zero_adapters(model: nn.Module, digests: dict[str, str]) -> dict[str, str]:
    """Digests by tensor name, with LoRA layers whose B is zero replaced by the layers that they adapt.

    DoRA layers stay, since they rescale the weights even where B is zero.
    """
    for layer, module in model.named_modules():
        if "lora_b" in module and "m" not in module and not mx.any(module["lora_b"]).item():
            inner = f"{layer}.embedding." if "embedding" in module else f"{layer}.linear."
            del digests[f"{layer}.lora_a"], digests[f"{layer}.lora_b"]
            digests = {name.replace(inner, f"{layer}."): digest for name, digest in digests.items()}
        elif is_qa_lora(module):  # computed otherwise than a plain adapter with the same tensors
            digests[f"{layer}.on_grid"] = tensor_digest(mx.array(True))  # part of existing fingerprints: don't rename
    return digests
