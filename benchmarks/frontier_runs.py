"""The runs of benchmarks/frontier.py: what each trains, and one of them in a process of its own.

python benchmarks/frontier_runs.py DIR NAME
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bundled_task import Sampler, answer_kls, judged_pairs, polite_and_right, write_float_model
from frontier_curves import best_of_n_rewards, binary_kl

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.adapters.attach import neutral_tensors
from mlx_dpo.demo import load_pairs
from mlx_dpo.forward.reward_model import RewardModel
from mlx_dpo.judges.judge import Answer, ScalarJudge

HERE = Path(__file__).resolve().parent
PREPARED, BEST_OF_N = "prepared", "best-of-n"
ANSWERS_TO_PAIR = 4  # sampled to each training question; the pair is one good and one bad of them
OFFLINE: dict[str, Any] = {"batch_size": 8, "learning_rate": 2e-4, "valid_pairs": 0, "save_every": 0}
FAST_RATE = 5e-4  # a second learning rate of dpo
PPO: dict[str, Any] = {  # as in examples/ppo.py
    "loss": "ppo",
    "batch_size": 32,
    "num_mini_batches": 4,
    "num_ppo_epochs": 1,
    "learning_rate": 8e-4,
    "max_grad_norm": 0.25,
    "vf_coef": 0.001,
    "lam": 1.0,
    "temperature": 1.0,
    "max_tokens": 64,
    "save_every": 0,
}
REWARD_MODEL: dict[str, Any] = {**OFFLINE, "loss": "reward", "epochs": 1.0}

SAMPLES = 2  # answers to each of the held-out questions at a point
OFFLINE_STEPS = (8, 16, 24, 32, 48, 80)  # after which a run on pairs is measured; it ends with the last
PPO_STEPS = (4, 8, 12, 16, 24, 32, 44)  # the same of PPO, each after all passes over a sample
REFERENCE_SAMPLES = 16  # answers of the reference to each question, for best-of-n


@dataclass(frozen=True)
class Run:
    """A method with one setting and seed.

    Attributes:
        method: its name in frontier.json.
        seed: of the pairs, the training and the sampling.
        settings: those that the runs of the method differ in.
        config: fields of `TrainConfig`.
    """

    method: str
    seed: int
    settings: dict[str, float]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """A folder's name."""
        return "-".join([self.method, *(f"{key}{value:g}" for key, value in self.settings.items()), str(self.seed)])


def runs_of_seed(seed: int, quick: bool) -> list[Run]:
    """The runs that need the pairs and the reward model of a seed."""

    def offline(method: str, loss: str, setting: str, values: Iterable[float], **config: float) -> list[Run]:
        shared = {**OFFLINE, "loss": loss, **config}
        is_flag = setting == "beta"
        return [
            Run(method, seed, {setting: value, **config}, {**shared, **({setting: value} if is_flag else {})})
            for value in values
        ]

    def ppo(method: str, values: Iterable[float]) -> list[Run]:
        return [Run(method, seed, {"kl_coef": value}, {**PPO, "kl_coef": value}) for value in values]

    return [
        *offline("dpo", "sigmoid", "beta", (0.1,) if quick else (0.1, 0.05, 0.3, 1.0)),
        *offline("dpo", "sigmoid", "beta", (0.1,) if quick else (0.1, 1.0), learning_rate=FAST_RATE),
        *ppo("ppo-true-reward", (0.2,)),
        *ppo("ppo", (0.2,)),
        Run(BEST_OF_N, seed, {}, {}),
        *offline("ipo", "ipo", "beta", (1.0,)),
        *offline("kto", "kto", "beta", (0.1,)),
        Run("sft", seed, {}, {**OFFLINE, "loss": "sft"}),
        *offline("unlikelihood", "unlikelihood.py:unlikelihood", "alpha", (0.5,)),
    ]


def all_runs(seeds: int, quick: bool) -> tuple[list[Run], list[Run]]:
    """Those that others depend on, and the others, seed by seed."""
    first = [Run(PREPARED, seed, {}, REWARD_MODEL) for seed in range(seeds)]
    return first, [run for seed in range(seeds) for run in runs_of_seed(seed, quick)]


class LearnedReward(ScalarJudge):
    """A reward model as a judge, on the scale of the true reward: good and bad answers of its pairs differ by 1.

    Args:
        folder: of the reward model.
        pairs: that it was trained on.
    """

    name = identity = "learned reward"

    def __init__(self, folder: Path, pairs: Sequence[dict[str, str]]) -> None:
        self.model, self.offset, self.scale = RewardModel.load(folder), 0.0, 1.0
        good, bad = (
            np.mean(self._rewards((row["prompt"], row[key]) for row in pairs)) for key in ("chosen", "rejected")
        )
        self.offset, self.scale = float(bad), float(1 / (good - bad))

    def _rewards(self, pairs: Iterable[tuple[str, str]]) -> np.ndarray:
        rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
        return (self.model.rewards(rows) - self.offset) * self.scale

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """See `Judge.scores`."""
        return [float(reward) for reward in self._rewards((str(item.prompt), item.completion) for item in answers)]


class PointListener(Listener):
    """Measures the policy in memory after some steps.

    Args:
        sampler: has the model that is trained in place.
        run: what is trained.
        steps: after which.
    """

    def __init__(self, sampler: Sampler, run: Run, steps: Sequence[int]) -> None:
        self.sampler, self.run, self.steps = sampler, run, steps
        self.points: list[dict[str, Any]] = []

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """See `Listener.on_step`."""
        if step in self.steps:
            point = measure(self.sampler, SAMPLES, self.run.seed)
            self.points.append(
                {"method": self.run.method, "seed": self.run.seed, "step": step, **point, **self.run.settings}
            )
            print(self.points[-1], flush=True)


def held_out_questions() -> list[str]:
    """The questions of the bundled held-out pairs."""
    return [str(row["prompt"]) for row in load_pairs("valid")]


def measure(sampler: Sampler, count: int, seed: int, questions: Sequence[str] | None = None) -> dict[str, float]:
    """KL to the base model and true reward of answers to held-out questions, with standard errors over questions."""
    questions = questions or held_out_questions()
    answers = sampler.sample(questions, count, seed)
    rewards = np.array(
        [[polite_and_right(q, item.text) for item in items] for q, items in zip(questions, answers, strict=True)]
    )
    ids = sampler.prompt_ids(questions)
    sequences = [(ids[i], item.token_ids) for i, items in enumerate(answers) for item in items]
    kls = answer_kls(sampler.model, neutral_tensors(sampler.model), sequences).reshape(len(questions), count)
    return {
        "kl": float(kls.mean()),
        "reward": float(rewards.mean()),
        "kl_standard_error": standard_error(kls.mean(axis=1)),
        "reward_standard_error": standard_error(rewards.mean(axis=1)),
        "answers": rewards.size,
    }


def standard_error(values: np.ndarray) -> float:
    """Of their mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5)


def prepare(folder: Path, run: Run, model: Path) -> list[dict[str, Any]]:
    """Sample and judge the pairs of a seed, and train the reward model on them."""
    questions = [str(row["prompt"]) for row in load_pairs("train")]
    answers = Sampler(folder=model).sample(questions, ANSWERS_TO_PAIR, 1000 + run.seed)
    pairs = judged_pairs(questions, [[item.text for item in items] for items in answers], run.seed)
    (folder / "pairs.json").write_text(json.dumps(pairs))
    config = TrainConfig(model=str(model), adapter_path=str(folder / "reward-model"), seed=run.seed, **run.config)
    train(config, rows=pairs)
    return []


def best_of_n(run: Run, model: Path, samples: int) -> list[dict[str, Any]]:
    """Points of best-of-n by the true reward: measured rewards, exact KL of a binary reward."""
    questions = held_out_questions()
    answers = Sampler(folder=model).sample(questions, samples, 2000 + run.seed)
    rewards = np.array(
        [[polite_and_right(q, item.text) for item in items] for q, items in zip(questions, answers, strict=True)]
    )
    base, points = float(rewards.mean()), []
    for n, by_question in best_of_n_rewards(rewards).items():
        expected = 1 - (1 - base) ** n
        points.append(
            {
                "method": BEST_OF_N,
                "seed": run.seed,
                "step": 0,
                "n": n,
                "kl": binary_kl(expected, base),
                "reward": float(by_question.mean()),
                "reward_standard_error": standard_error(by_question),
                "expected_reward": expected,
                "answers": rewards.size,
            }
        )
    return points


def is_on_policy(run: Run) -> bool:
    """Whether it samples its own answers."""
    return run.method in ("ppo", "ppo-true-reward")


def measured_steps(run: Run) -> tuple[int, ...]:
    """The steps after which it is measured."""
    return PPO_STEPS if is_on_policy(run) else OFFLINE_STEPS


def execute(folder: Path, run: Run) -> list[dict[str, Any]]:
    """Train, and return the points."""
    own, model = folder / "runs" / run.name, folder / "model"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    if run.method == PREPARED:
        return prepare(own, run, model)
    if run.method == BEST_OF_N:
        return best_of_n(run, model, REFERENCE_SAMPLES)
    prepared = folder / "runs" / f"{PREPARED}-{run.seed}"
    pairs = json.loads((prepared / "pairs.json").read_text())
    on_policy, steps = is_on_policy(run), measured_steps(run)
    sampler = Sampler(folder=model)
    listener = PointListener(sampler, run, steps)
    settings = {**run.config, "loss": run.config["loss"].replace("unlikelihood.py", f"{HERE / 'unlikelihood.py'}")}
    config = TrainConfig(
        model=str(model), adapter_path=str(own / "adapter"), seed=run.seed, iters=steps[-1], **settings
    )
    source: dict[str, Any] = {"rows": pairs}
    if on_policy:
        judge = polite_and_right if run.method == "ppo-true-reward" else LearnedReward(prepared / "reward-model", pairs)
        source = {"prompts": [str(row["prompt"]) for row in load_pairs("train")], "judge": judge}
    train(config, model=sampler.model, tokenizer=sampler.tokenizer, listener=listener, **source)
    return listener.points


def finished_points(folder: Path, run: Run) -> list[dict[str, Any]] | None:
    """The points of a run that has been made already, with the same settings; else None."""
    file = folder / "runs" / run.name / "points.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    return found["points"] if found["made_by"] == made_by(run) else None


def made_by(run: Run) -> dict[str, Any]:
    """What a run's points depend on, as JSON has it."""
    parts: dict[str, Any] = {PREPARED: (), BEST_OF_N: REFERENCE_SAMPLES}
    measured = parts.get(run.method, (SAMPLES, measured_steps(run)))
    return json.loads(json.dumps({"run": asdict(run), "measured": measured}))


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    first, others = all_runs(1 + int(name.rpartition("-")[2]), quick=False)
    run = next(run for run in [*first, *others] if run.name == name)
    write_float_model(folder / "model")
    points = execute(folder, run)
    file = folder / "runs" / name / "points.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"made_by": made_by(run), "points": points}))
    part.rename(file)


if __name__ == "__main__":
    main()
