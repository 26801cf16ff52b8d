"""A policy's fingerprint: a digest of all that its log-probs depend on. The folder of the model does not matter."""

from __future__ import annotations

from mlx_dpo.forward.model_digest import model_digest, tensor_digests
from mlx_dpo.forward.network import Network, PromptSharing

# In existing fingerprints, so not to be changed.
_SHARING_TAGS = {PromptSharing.ANY_PROMPTS: "ANY", PromptSharing.ONE_PROMPT: "ONE", PromptSharing.NONE: "NONE"}


def fingerprint(network: Network) -> str:
    """Compute a hexadecimal digest of a policy, its forward path, and the versions and device that run it.

    An adapter whose B is zero changes nothing, so a model has the same fingerprint with such an adapter and without.
    """
    known = network.shards.tensor_digests if network.shards else network.frozen_digests
    digests = tensor_digests(network.model, known)
    return model_digest(network.model, digests, _SHARING_TAGS[network.sharing]).hexdigest()
