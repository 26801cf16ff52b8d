"""`evaluate` against the plain computation, to 1e-5 in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm
import pytest

from mlx_dpo import TrainConfig, UserError, evaluate
from mlx_dpo.demo import MODEL
from tests import plain
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "it", "rains", "north"]


def text(words: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(words))


HARD = [
    # prompts of ten-fold different length in one batch, one-token completions, several turns, left-over lengths
    {"prompt": text(4), "chosen": "4", "rejected": "5"},
    {"prompt": text(60, 3), "chosen": text(7), "rejected": text(1)},
    {"prompt": text(5, 8), "chosen": text(40), "rejected": "no"},
    {"prompt": text(1), "chosen": text(2), "rejected": text(33, 5)},
    {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": text(9)},
            {"role": "assistant", "content": text(3)},
            {"role": "user", "content": text(2, 4)},
        ],
        "chosen": [{"role": "assistant", "content": text(6)}],
        "rejected": [{"role": "assistant", "content": text(5, 9)}],
    },
]


@pytest.mark.parametrize("rows", [HARD, rows_of(PAIRS)], ids=["hard", "trl"])
@pytest.mark.parametrize("reference", ["base", "none"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluate_is_the_plain_computation(
    tmp_path: Path, rows: list[dict[str, Any]], reference: str, batch_size: int
) -> None:
    base, tokenizer = mlx_lm.load(str(CHECKPOINT))
    policy, _ = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    expected = plain.metrics(policy, None if reference == "none" else base, tokenizer, rows, beta=0.3)

    data = write_rows(tmp_path / "pairs.jsonl", rows)
    config = TrainConfig(model=str(CHECKPOINT), data=str(data), reference=reference, beta=0.3, batch_size=batch_size)
    measured = evaluate(config, adapter_path=TRL / "adapter")

    assert measured.pop("pairs") == len(rows)
    assert measured == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_another_models_folder_as_the_reference(tmp_path: Path) -> None:
    """A fused model can be held against its base."""
    from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter

    fused = fuse_adapter(str(CHECKPOINT), TRL / "adapter", tmp_path / "fused").path
    config = TrainConfig(model=str(CHECKPOINT), data=str(PAIRS), reference="base")
    by_adapter = evaluate(config, adapter_path=TRL / "adapter")
    by_folder = evaluate(config.replace(model=str(fused), reference=str(CHECKPOINT)))
    assert by_folder == pytest.approx(by_adapter, rel=1e-5, abs=1e-4)
    assert by_adapter["rewards/margins"] > 0.1


def test_a_reference_of_another_vocabulary_is_refused() -> None:
    config = TrainConfig(model=str(CHECKPOINT), data=str(PAIRS), reference=str(MODEL))
    with pytest.raises(UserError, match="another vocabulary"):
        evaluate(config)


def test_a_policy_that_is_its_reference_has_no_margin() -> None:
    measured = evaluate(TrainConfig(model=str(CHECKPOINT), data=str(PAIRS)))
    assert measured["rewards/margins"] == 0
    assert measured["rewards/accuracies"] == 0  # ties count against, as in TRL
    assert measured["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_rows_and_a_model_in_memory() -> None:
    model, tokenizer = mlx_lm.load(str(CHECKPOINT), adapter_path=str(TRL / "adapter"))
    config = TrainConfig(model=str(CHECKPOINT), data=str(PAIRS))
    in_memory = evaluate(config, model=model, tokenizer=tokenizer, rows=rows_of(PAIRS))
    assert in_memory == evaluate(config, adapter_path=TRL / "adapter")
