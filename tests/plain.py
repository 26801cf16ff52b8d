"""DPO's numbers the plain way, sharing nothing with mlx_dpo: a sequence at a time, full logits, numpy in float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np


def completion_ids(tokenizer: Any, prompt: Any, completion: Any) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids) by the chat template; strings are a user's and an assistant's turn."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    start = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(asked + said, return_dict=False)
    assert whole[: len(start)] == start
    return list(start), list(whole[len(start) :])


def logp(model: Any, prompt: list[int], completion: list[int]) -> float:
    """log p(completion | prompt), nats."""
    ids = prompt + completion
    logits = np.array(model(mx.array([ids]))[0].astype(mx.float32), dtype=np.float64)
    top = logits.max(axis=-1, keepdims=True)
    logps = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return sum(logps[i - 1, ids[i]] for i in range(len(prompt), len(ids)))


def metrics(policy: Any, reference: Any, tokenizer: Any, rows: list[dict[str, Any]], beta: float) -> dict[str, float]:
    """What TRL logs for these rows; `reference` None stands for log-probs of zero."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        side = {}
        for name in ("chosen", "rejected"):
            ids = completion_ids(tokenizer, row["prompt"], row[name])
            own = logp(policy, *ids)
            side[name] = own, beta * (own - (0.0 if reference is None else logp(reference, *ids)))
        margin = side["chosen"][1] - side["rejected"][1]
        values = {
            "loss": np.log1p(np.exp(-margin)) if margin > 0 else -margin + np.log1p(np.exp(margin)),
            "rewards/chosen": side["chosen"][1],
            "rewards/rejected": side["rejected"][1],
            "rewards/accuracies": float(margin > 0),
            "rewards/margins": margin,
            "logps/chosen": side["chosen"][0],
            "logps/rejected": side["rejected"][0],
            "logps/accuracies": float(side["chosen"][0] > side["rejected"][0]),
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in columns.items()}
