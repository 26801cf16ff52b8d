"""The bundled model learns to be polite from its own answers: with prompts and a judge, and without pairs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mlx_dpo.data.examples import Prompt
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.generation import generate_before_and_after

EXAMPLE = Path(__file__).parents[3] / "examples" / "on_policy.py"


def test_the_example_runs(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, EXAMPLE, tmp_path, "2"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("step 2: reward 0.")


@pytest.mark.slow
def test_politeness_on_unseen_prompts(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLE, tmp_path], capture_output=True, check=True)
    questions = [str(row["prompt"]) for row in load_pairs("valid")]
    sampling = SamplingParams(max_tokens=64, temperature=1.0)
    shares = []
    for answers in generate_before_and_after(
        str(MODEL), tmp_path / "adapter", list(map(Prompt, questions * 2)), sampling
    ):
        polite = [detect_manner(answer) == "polite" for answer in answers]
        fluent = [is_fluent(question, answer) for question, answer in zip(questions * 2, answers, strict=True)]
        shares.append((sum(polite) / len(polite), sum(fluent) / len(fluent)))
    (polite_before, _), (polite_after, fluent_after) = shares
    assert 0.4 < polite_before < 0.6 and polite_after >= 0.95 and fluent_after >= 0.97, shares
