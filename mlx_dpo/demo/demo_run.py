"""The demo: train the bundled model on the bundled pairs, and ask it questions that neither had."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_dpo.config import TrainConfig
from mlx_dpo.demo import MODEL, PAIRS, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent
from mlx_dpo.sampling.generation import SamplingParams, generate_before_and_after
from mlx_dpo.training.listener import Listener, TrainResult
from mlx_dpo.training.run import train


@dataclass(frozen=True)
class MannerShares:
    """Shares of sampled answers that are in the preferred manner, and that are fluent and to the point."""

    polite: float
    fluent: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo came to; `examples` are (question, answer before, answer after)."""

    train_result: TrainResult
    before: MannerShares
    after: MannerShares
    examples: list[tuple[str, str, str]]


def demo_config(adapter_path: str) -> TrainConfig:
    """Conservative DPO at a high rate: so small a model moves fast, and smoothed labels say where it is to stop."""
    return TrainConfig(
        model=str(MODEL),
        data=str(PAIRS),
        adapter_path=adapter_path,
        learning_rate=2e-4,
        beta=0.6,
        label_smoothing=0.1,
    )


def run_demo(config: TrainConfig, listener: Listener) -> DemoResult:
    """Train, then sample one answer a held-out question from the model before and after."""
    trained = train(config, listener=listener)
    questions = [row["prompt"] for row in load_pairs("valid")]
    sampling = SamplingParams(max_tokens=64, temperature=1.0, seed=config.seed)
    before, after = generate_before_and_after(config.model, trained.run, list(questions), sampling)
    examples = list(zip(questions, before, after, strict=True))
    return DemoResult(trained, _manners(questions, before), _manners(questions, after), examples)


def _manners(questions: list[str], answers: list[str]) -> MannerShares:
    count = len(answers)
    polite = sum(detect_manner(answer) == "polite" for answer in answers) / count
    return MannerShares(polite, sum(map(is_fluent, questions, answers)) / count)
