"""The demo: train the bundled model on the bundled pairs, and sample answers to held-out questions."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.examples import Prompt
from mlx_dpo.demo import MODEL, PAIRS, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.generation import generate_before_and_after
from mlx_dpo.training.events import TrainResult
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.run import train


@dataclass(frozen=True)
class MannerShares:
    """Shares of sampled answers.

    Attributes:
        polite: share of answers in the preferred manner.
        fluent: share of answers that are fluent and relevant.
    """

    polite: float
    fluent: float


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo.

    Attributes:
        train_result: that of the training.
        before: shares of answers sampled before training.
        after: shares of answers sampled after training.
        examples: (question, answer before, answer after).
    """

    train_result: TrainResult
    before: MannerShares
    after: MannerShares
    examples: list[tuple[str, str, str]]


def demo_config(adapter_path: str) -> TrainConfig:
    """Conservative DPO at a high learning rate: small models learn fast, and label smoothing bounds the margin."""
    return TrainConfig(
        model=str(MODEL),
        data=str(PAIRS),
        adapter_path=adapter_path,
        learning_rate=2e-4,
        beta=0.6,
        label_smoothing=0.1,
    )


def run_demo(config: TrainConfig, listener: Listener) -> DemoResult:
    """Train, then sample an answer to each held-out question from the model before and after training."""
    result = train(config, listener=listener)
    questions = [str(row["prompt"]) for row in load_pairs("valid")]
    sampling = SamplingParams(max_tokens=64, temperature=1.0, seed=config.seed)
    before, after = generate_before_and_after(config.model, result.run, list(map(Prompt, questions)), sampling)
    examples = list(zip(questions, before, after, strict=True))
    return DemoResult(result, _shares(questions, before), _shares(questions, after), examples)


def _shares(questions: list[str], answers: list[str]) -> MannerShares:
    count = len(answers)
    polite = sum(detect_manner(answer) == "polite" for answer in answers) / count
    return MannerShares(polite, sum(map(is_fluent, questions, answers)) / count)
