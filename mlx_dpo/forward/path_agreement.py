"""Check that a cheaper forward path gives the log-probs of the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.data.encoded_example import TokenIds
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.errors import UserError
from mlx_dpo.forward.oom_fallback import is_out_of_memory
from mlx_dpo.forward.prefix_cache import UnsupportedCacheError
from mlx_dpo.utils.temporary_folder import mlx_temporary_folder

Sequences = list[tuple[TokenIds, TokenIds]]  # (prompt, completion)
CompletionSums = Callable[[Sequences], np.ndarray]  # log p of each completion, nats

# As few tokens as distinguish the paths, since each takes a second on a slow backend: prompts of different lengths, one
# of a single token, two equal; completions likewise.
_PROMPTS = [(3, 5, 4, 6, 2), (4,), (4,)]
_COMPLETIONS = [(6, 3, 2), (2,), (3, 4)]

# What model code raises when its forward pass is run in parts that it is not written for. An error of the machine (out
# of memory, an operation that the backend lacks) is a RuntimeError, and says nothing on the model.
_UNSUITABLE = (ValueError, TypeError, AttributeError, LookupError, UnsupportedCacheError)


def agrees(sums: CompletionSums, plain_sums: CompletionSums, *, several_prompts: bool) -> bool:
    """Compare log-probs on a few sequences, up to the differences that padding alone causes.

    Args:
        sums: log-probs by the forward path to check.
        plain_sums: log-probs by the model's own forward pass; called with the same sequences for each path.
        several_prompts: whether sequences with different prompts may be run together.

    Raises:
        RuntimeError: mlx failed in either path.
    """
    sequences = list(zip(_PROMPTS, _COMPLETIONS, strict=True))
    groups = [sequences] if several_prompts else [sequences[:1], sequences[1:]]
    for group in groups:
        alone = np.concatenate([plain_sums([sequence]) for sequence in group])
        try:
            values = sums(group)
        except _UNSUITABLE:
            return False
        if np.abs(values - alone).max() <= _tolerance(alone):
            continue
        if len(group) == 1:
            return False
        # The model's own pass over a padded batch, which most models needn't be run for, shows what padding does.
        padded = plain_sums(group)
        if not np.abs(values - padded).max() <= _tolerance(padded) + 8 * np.abs(padded - alone).max():
            return False
    return True


def _tolerance(sums: np.ndarray) -> float:
    """The difference between log-probs that rounding explains, nats."""
    return float(1e-4 + 1e-5 * np.abs(sums).max())


def remembered(function: CompletionSums) -> CompletionSums:
    """Memoize a function: each forward path is compared with the same results of the model's own."""
    results: dict[tuple[object, ...], np.ndarray] = {}

    def call(sequences: Sequences) -> np.ndarray:
        key = tuple(sequences)
        if key not in results:
            results[key] = function(sequences)
        return results[key]

    return call


def can_build(hidden_states: Callable[[MicroBatch], mx.array]) -> bool:
    """Whether the model's code supports a forward path, by building the graph alone.

    Args:
        hidden_states: the forward path; it is not evaluated.
    """
    try:
        hidden_states(MicroBatch((), tuple(zip(_PROMPTS[:1], _COMPLETIONS[:1], strict=True))))
    except _UNSUITABLE:
        return False
    return True


def head_is_adapted(model: nn.Module) -> bool:
    """Whether a layer outside of the blocks is adapted: the head or a tied embedding then gets a gradient."""
    inside = {id(module) for layer in model.layers for _, module in layer.named_modules()}
    return any("lora_a" in module and id(module) not in inside for _, module in model.named_modules())


def count_logits(model: nn.Module, *, evaluate: bool = True) -> int:
    """Count the logits of a model by running it on one token.

    Args:
        model: the model.
        evaluate: whether to run it; if not, only its graph is built.

    Raises:
        UserError: mlx-lm or mlx can't run the model.
    """
    try:
        logits = model(mx.zeros((1, 1), mx.int32))
        if evaluate:
            mx.eval(logits)
        return logits.shape[-1]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"mlx-lm can't run this model as it is adapted: {error}",
            hint="Some layers can't be adapted in some models: name those to adapt with --lora-keys.",
        ) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"mlx can't run this model on this machine: {error}",
            hint=_missing_temporary_folder()
            or "An operation may be missing for its data type on this backend: try a float32 or a quantized copy. "
            "`mlx-dpo doctor` checks what this machine computes.",
        ) from error


def _missing_temporary_folder() -> str | None:
    """A hint if the temporary folder, in which mlx compiles for the CPU, is missing; else None."""
    folder = mlx_temporary_folder()
    if folder.variable is None or folder.path.is_dir():
        return None
    return f"{folder.variable} is {folder.path}, which is not a folder: set it to a folder, or unset it."
