"""Tokens of a completion that are context: they go through the model, and are neither scored nor trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import TrainConfig, evaluate, train
from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.data.encoded_example import EncodedExample, TokenIds, TokenMask, cut_completion
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.micro_batches import MicroBatch, make_micro_batch, mismatched_example, split_into_micro_batches
from mlx_dpo.evaluation.implicit_rewards import score
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.reference import logp_cache
from tests.conftest import CHECKPOINT, rows_of, write_rows

T, F = True, False
PAIRS = [
    EncodedExample(
        (5, 6, 7, 8), ((9, 10, 11, 12, 13, 14), (15, 16)), Pair("", "a", "b"), True, ((F, T, T, F, F, T), (T, T))
    ),
    EncodedExample((5, 6), ((20, 21, 22), (23, 24, 25, 26, 27)), Pair("", "c", "d")),
]


def masked_batch(**options: Any) -> MicroBatch:
    return make_micro_batch(PAIRS, (0, 1), **options)


def all_true(sequence: tuple[TokenIds, TokenIds]) -> TokenMask:
    return (T,) * len(sequence[1])


def tiny_model() -> nn.Module:
    model = mlx_lm.load(str(CHECKPOINT))[0]
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0, keys=None))
    mx.random.seed(1)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    return model.train()


def masked_sums(model: nn.Module, batch: MicroBatch) -> mx.array:
    """Log-probs summed over the tokens that are not masked, one sequence after the other."""
    sums = []
    for (prompt, completion), mask in zip(batch.sequences, batch.completion_masks or (), strict=True):
        logits = model(mx.array([[*prompt, *completion[:-1]]]))[0, len(prompt) - 1 :].astype(mx.float32)
        logps = -nn.losses.cross_entropy(logits, mx.array(completion))
        sums.append(mx.where(mx.array(mask), logps, 0).sum())
    return mx.stack(sums)


@pytest.mark.parametrize("sharing", [PromptSharing.NONE, PromptSharing.ANY_PROMPTS])
def test_only_tokens_of_the_assistant_are_summed_and_get_a_gradient(sharing: PromptSharing) -> None:
    model, batch = tiny_model(), masked_batch()
    network = Network.from_model(model)
    object.__setattr__(network, "sharing", sharing)
    weights = np.linspace(-1, 1, 4).astype(np.float32)
    _, expected = nn.value_and_grad(model, lambda: (masked_sums(model, batch) * mx.array(weights)).sum())()
    trace = network.trace(batch)
    np.testing.assert_allclose(trace.logps.sums, np.array(masked_sums(model, batch)), rtol=1e-5)
    assert [int(n) for n in np.bincount(trace.logps.sequence_indices)] == [3, 3, 2, 5] == list(batch.trained_lengths)
    ours = dict(tree_flatten(trace.gradient(weights)))
    for name, gradient in tree_flatten(expected):
        np.testing.assert_allclose(np.array(ours[name]), np.array(gradient), atol=1e-5, err_msg=name)


def test_weights_are_of_trained_tokens() -> None:
    weights = masked_batch(ld_alpha=0.25).token_weights
    assert weights is not None
    assert [list(values) for values in weights] == [[1, 1, 0.25], [1, 1, 1], [1, 1], [1, 1, 1, 0.25, 0.25]]
    network = Network.from_model(tiny_model())
    logps = network.logps(masked_batch(ld_alpha=0.25))
    assert logps.token_weights is not None and len(logps.token_weights) == len(logps.token_logps) == 13


def test_masks_follow_their_examples() -> None:
    assert masked_batch().completion_masks == ((F, T, T, F, F, T), (T,) * 3, (T, T), (T,) * 5)
    assert make_micro_batch(PAIRS, (1,)).completion_masks is None
    first, second = split_into_micro_batches(PAIRS, lambda batch: len(batch.sequences) <= 2)
    assert (first.completion_masks, second.completion_masks) == (None, ((F, T, T, F, F, T), (T, T)))
    mismatched = mismatched_example(PAIRS[1], PAIRS[0], 5)
    assert mismatched.completions == ((9, 10, 11), (15, 16)) and mismatched.completion_masks == ((F, T, T), (T, T))
    assert PAIRS[0].select_completions(slice(1, 2)).completion_masks == ((T, T),)


def test_reference_log_probs_are_kept_by_mask() -> None:
    batch = masked_batch()
    without = MicroBatch(batch.batch_indices, batch.sequences)
    other = MicroBatch(batch.batch_indices, batch.sequences, completion_masks=tuple(map(all_true, batch.sequences)))
    assert len({logp_cache._key(each) for each in (batch, without, other)}) == 3


@pytest.mark.parametrize(
    ("mask", "limit", "kept"),
    [
        (None, 4, "0123"),
        ((T,) * 8, 4, "0123"),
        ((F, F, T, F, F, F, F, T), 4, "0123"),
        ((F, F, F, F, F, F, T, T), 4, "4567"),
        ((F, F, F, F, F, F, T, T), 2, "56"),
        ((F, F, F, F, F, F, F, T), 1, "7"),
    ],
)
def test_what_is_left_of_a_completion_has_something_to_train(mask: TokenMask | None, limit: int, kept: str) -> None:
    ids, cut = cut_completion(tuple(range(8)), mask, limit)
    assert "".join(map(str, ids)) == kept
    assert cut is None or (any(cut) and len(cut) == len(ids))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROW = {
    "chosen": [turn("user", "One?"), turn("assistant", "First."), turn("user", "More?"), turn("assistant", "Good.")],
    "rejected": [turn("user", "One?"), turn("assistant", "Fi."), turn("user", "Less?"), turn("assistant", "Bad.")],
}


def test_training_evaluation_and_scores_see_the_same_tokens(tmp_path: Path) -> None:
    data = str(write_rows(tmp_path / "rows.jsonl", [ROW] * 4))
    config = TrainConfig(model=str(CHECKPOINT), data=data, valid_pairs=0, iters=1, adapter_path=str(tmp_path / "run"))
    train(config)
    for train_on in ("all", "last"):
        changed = config.replace(train_on=train_on, reference="none", beta=1.0)
        metrics = evaluate(changed)
        score(changed, tmp_path / f"{train_on}.jsonl")
        rewards = rows_of(tmp_path / f"{train_on}.jsonl")[0]["rewards"]
        assert rewards == pytest.approx([metrics["logps/chosen"], metrics["logps/rejected"]], abs=1e-4)
        assert rewards == pytest.approx(plain_logps(train_on), abs=1e-3)


def plain_logps(train_on: str) -> list[float]:
    """Log-probs of the assistant's turns in each conversation, computed turn by turn."""
    model, tokenizer = mlx_lm.load(str(CHECKPOINT))
    sums = []
    for conversation in (ROW["chosen"], ROW["rejected"]):
        total = 0.0
        for i in (1, 3) if train_on == "all" else (3,):
            ids = tokenizer.apply_chat_template(conversation[: i + 1], return_dict=False)
            start = len(tokenizer.apply_chat_template(conversation[:i], add_generation_prompt=True, return_dict=False))
            logps = nn.log_softmax(model(mx.array([ids[:-1]]))[0].astype(mx.float32))
            total += sum(logps[t - 1, ids[t]].item() for t in range(start, len(ids)))
        sums.append(total)
    return sums


def test_data_show_marks_what_is_trained(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mlx_dpo.cli.data import app

    data = str(write_rows(tmp_path / "rows.jsonl", [ROW]))
    shown = CliRunner().invoke(app, ["show", "1", data, "--model", str(CHECKPOINT), "--json"])
    chosen = json.loads(shown.stdout)["chosen"]
    assert len(chosen["trained"]) == chosen["tokens"] and 0 < sum(chosen["trained"]) < chosen["tokens"]
    text = CliRunner().invoke(app, ["show", "1", data, "--model", str(CHECKPOINT)]).stdout
    assert "«First.»" in text and "«Good.»" in text and "«More?»" not in text and "tokens of context" in text
