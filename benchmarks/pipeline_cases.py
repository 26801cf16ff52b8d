"""The two cases of dpo_and_ppo.py: model, prompts, true reward, pairs, and settings of every run."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundled_task import SIDE_BY_SIDE, polite_and_right
from frontier_runs import PPO

from mlx_dpo.demo import load_pairs

TrueReward = Callable[[str, str], float]  # of prompt and answer


@dataclass(frozen=True)
class PipelineCase:
    """A model, a task with an exact reward, and how it is trained.

    Attributes:
        name: the case's.
        model: folder of the model.
        common: settings of all runs.
        dpo, reward, ppo: settings of each, without `common`.
        prompts, held_out: to train on, and to measure on.
        true_reward: of an answer.
        levels: true rewards at which the pipelines are compared.
        answers: to each held-out prompt, when a checkpoint is measured.
        side_by_side: answers that are sampled together then; None for what fits in memory.
        pairs_from: answers sampled to each prompt for a pair: the best and the worst.
    """

    name: str
    model: str
    common: dict[str, Any]
    dpo: dict[str, Any]
    reward: dict[str, Any]
    ppo: dict[str, Any]
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    true_reward: TrueReward
    levels: tuple[float, ...]
    answers: int
    pairs_from: int
    side_by_side: int | None = None

    def settings(self, part: str) -> dict[str, Any]:
        """The settings of a run: "dpo", "reward" or "ppo"."""
        settings: dict[str, Any] = {**self.common, **getattr(self, part)}
        sampled = () if part == "ppo" else ("temperature", "max_tokens")
        return {name: value for name, value in settings.items() if name not in sampled}


def make_case(name: str, model: str) -> PipelineCase:
    """A case by its name, on the model in a folder."""
    return {"bundled": bundled_case, "real": real_case}[name](model)


def bundled_case(model: str) -> PipelineCase:
    """The demo's model and questions: 1 for an answer that is polite and right, else 0."""
    return PipelineCase(
        name="bundled",
        model=model,
        common={"temperature": 1.0, "max_tokens": 64},
        dpo={"batch_size": 8, "iters": 80, "save_every": 10, "learning_rate": 2e-4, "beta": 0.1},
        reward={"loss": "reward", "batch_size": 8, "iters": 80, "learning_rate": 2e-4},
        ppo={
            **PPO,
            "iters": 32,
            "save_every": 4,
            "kl_coef": 1.2,  # 0.2 for each point of the true reward, of which one is six of the reward model's
        },
        prompts=tuple(str(row["prompt"]) for row in load_pairs("train")),
        held_out=tuple(str(row["prompt"]) for row in load_pairs("valid")),
        true_reward=polite_and_right,
        levels=(0.80, 0.85, 0.90),
        answers=2,
        side_by_side=SIDE_BY_SIDE,
        pairs_from=4,
    )


def real_case(model: str) -> PipelineCase:
    """Gemma 3 270M continues a review: the sentiment of what it writes, from -1 to 1, by a lexicon."""
    prompts = review_openings()
    return PipelineCase(
        name="real",
        model=model,
        common={"raw": True, "temperature": 1.0, "max_tokens": 12},
        dpo={"batch_size": 8, "iters": 28, "save_every": 7, "learning_rate": 2e-4, "beta": 0.1},
        reward={"loss": "reward", "batch_size": 8, "iters": 28, "learning_rate": 2e-4},
        ppo={
            **{"loss": "ppo", "batch_size": 32, "iters": 24, "save_every": 8, "learning_rate": 2e-4},
            **{"max_grad_norm": 0.25, "vf_coef": 0.01, "lam": 1.0, "kl_coef": 0.1},
        },
        prompts=prompts[:128],
        held_out=prompts[-48:],
        true_reward=sentiment_reward(),
        levels=(),
        answers=2,
        pairs_from=3,
    )


def sentiment_reward() -> TrueReward:
    """The compound sentiment of an answer alone, by the lexicon and the rules of VADER."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda prompt, answer: float(analyzer.polarity_scores(answer)["compound"])


def review_openings() -> tuple[str, ...]:
    """The first words of made-up reviews, in random order."""
    things = (
        *("movie", "restaurant", "hotel", "book", "phone", "camera", "game", "album", "concert", "laptop"),
        *("series", "museum", "play", "coffee machine", "vacuum cleaner", "airline"),
    )
    beginnings = (
        *("The {} that we tried last week", "I must say that this {}", "My opinion of this {}:", "This {} is"),
        *(
            "We chose this {} because",
            "After a month with this {}, I",
            "To be honest, the {}",
            "What I think of the {}:",
        ),
        *("Last night's {} was", "When I first saw the {}, I", "Our family found the {}", "If you ask me, this {}"),
        *("Before you pay for this {},", "The staff said that the {}", "Compared with others, this {}"),
        *("In the end the {}", "People say that this {}", "For the price, the {}"),
    )
    openings = [text.format(thing) for text, thing in itertools.product(beginnings, things)]
    random.Random(0).shuffle(openings)
    return tuple(openings)


def choose_pairs(prompts: Sequence[str], answers: Sequence[Sequence[str]], reward: TrueReward) -> list[dict[str, str]]:
    """Of each prompt's answers the best and the worst by the true reward; none on a tie, or of an empty answer."""
    pairs = []
    for prompt, texts in zip(prompts, answers, strict=True):
        known = sorted((text for text in texts if text.strip()), key=lambda text: reward(prompt, text))
        if known and reward(prompt, known[-1]) > reward(prompt, known[0]):
            pairs.append({"prompt": prompt, "chosen": known[-1], "rejected": known[0]})
    return pairs


def read_pairs(folder: Path) -> list[dict[str, Any]]:
    """The pairs that both pipelines learn from, as the part "pairs" has left them in a folder."""
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
