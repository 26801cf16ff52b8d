"""Whether a tokenizer's ids are in a model's vocabulary."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

from mlx_dpo.errors import UserError


def check_vocabulary(model: nn.Module, tokenizer: Any) -> None:
    """Check that every token that rows can contain has a row in the model's embedding.

    mlx reads outside of the array if an id is too large, and returns garbage. A special token of images or audio
    may lie outside if neither the chat template nor the end of a text uses it; some text models have such tokens.

    Args:
        model: the model.
        tokenizer: mlx-lm's wrapper or a tokenizer of transformers.

    Raises:
        UserError: there is a token without a row.
    """
    rows = num_embeddings(model)
    if rows is None:
        return
    outside = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    used = [i for token, i in outside.items() if _can_occur(tokenizer, token, i)]
    if used:
        raise UserError(
            f"the tokenizer has ids up to {max(used)}, but the model's embedding has {rows} rows, ids 0 to {rows - 1}",
            hint="They don't belong together: use the tokenizer files that came with the model.",
        )


def num_embeddings(model: nn.Module) -> int | None:
    """The number of rows of the model's token embedding; None if it has no embedding layer."""
    rows = [
        module.weight.shape[0]
        for _, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))
    ]
    return max(rows, default=None)  # others, as of positions, are smaller


def _can_occur(tokenizer: Any, token: str, token_id: int) -> bool:
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    if token_id not in added or not added[token_id].special:
        return True
    named = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
    return token_id in named or token in str(getattr(tokenizer, "chat_template", None) or "")
