"""Train the bundled model on its own answers: there are prompts and a judge, and no pairs.

    python examples/on_policy.py [FOLDER] [STEPS]

A hundred steps take two to three minutes on two CPU cores. The same on the command line:

    mlx-dpo train --on-policy --model MODEL --prompts prompts.jsonl --judge examples/judges.py:polite
"""

import sys
import tempfile

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent


def polite_and_right(prompt: str, answer: str) -> float:
    """1 for a polite answer that is right, else 0."""
    return float(detect_manner(answer) == "polite" and is_fluent(prompt, answer))


class RewardPrinter(Listener):
    """Prints what the judge makes of the answers that were sampled since the last report."""

    def on_metrics(self, metrics: dict[str, float]) -> None:
        print(f"step {metrics['step']}: reward {metrics['rollouts/reward']:.3f}, ties {metrics['rollouts/ties']:.0%}")


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
config = TrainConfig(
    on_policy=True,
    model=str(MODEL),
    adapter_path=f"{folder}/adapter",
    iters=int(sys.argv[2]) if len(sys.argv) > 2 else 100,
    learning_rate=3e-4,
    max_tokens=64,
)
prompts = [str(row["prompt"]) for row in load_pairs("train")]
train(config, prompts=prompts, judge=polite_and_right, listener=RewardPrinter())
