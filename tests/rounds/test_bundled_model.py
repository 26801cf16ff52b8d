"""Rounds on the bundled model, with prompts only: its answers get polite, and stay fluent, on unseen questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_dpo import RoundsConfig, TrainConfig, train_rounds
from mlx_dpo.demo import MODEL, PAIRS, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent
from mlx_dpo.judges.function_judge import ScoringFunctionJudge
from mlx_dpo.sampling.completions import SamplingParams
from tests.conftest import rows_of, write_rows


def polite_and_right(prompt: str, answer: str) -> float:
    return float(detect_manner(answer) == "polite") + float(is_fluent(prompt, answer))


@pytest.mark.slow
@pytest.mark.timeout(3600)  # minutes on an idle machine
def test_three_rounds_make_it_polite(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in load_pairs("train")[:300]])
    config = RoundsConfig(
        TrainConfig(model=str(MODEL), learning_rate=3e-4, beta=0.2),
        str(prompts),
        tmp_path / "rounds",
        n=4,
        sampling=SamplingParams(max_tokens=48, temperature=1.0),
        eval_prompts=str(PAIRS / "valid.jsonl"),
    )
    result = train_rounds(config, ScoringFunctionJudge(polite_and_right, "polite and right"))
    shares = []
    for folder in ("start", "round-1", "round-2", "round-3"):
        rows = rows_of(config.output_dir / folder / "answers.jsonl")
        answers = [(row["prompt"], row["completions"][0]) for row in rows]
        shares.append(sum(detect_manner(answer) == "polite" for _, answer in answers) / len(answers))
        assert sum(is_fluent(*pair) for pair in answers) / len(answers) >= 0.97
    assert shares == sorted(shares) and shares[0] < 0.6 and shares[-1] >= 0.9, shares
    assert result.best == 3 and result.stopped is None
