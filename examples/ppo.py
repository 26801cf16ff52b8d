"""PPO-RLHF on the bundled model: from prompts and a score of each answer. No pairs are needed.

    python examples/ppo.py [FOLDER] [STEPS] [LOSS] [SEED]

44 steps of `ppo`, the default, take two to four minutes on two CPU cores. The score is the true one, of a function; a
reward model that pairs have taught takes its place on the command line:

    mlx-dpo train --loss reward --model MODEL --data pairs.jsonl --learning-rate 2e-4 --adapter-path reward-model
    mlx-dpo train --loss ppo --model MODEL --prompts prompts.txt --reward-model reward-model
"""

import sys
import tempfile

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent


def polite_and_right(prompt: str, answer: str) -> float:
    """1 for a polite answer that is right, else 0."""
    return float(detect_manner(answer) == "polite" and is_fluent(prompt, answer))


class ScorePrinter(Listener):
    """Prints the mean score of what was sampled since the last report, and how far the policy has moved."""

    def on_metrics(self, metrics: dict[str, float]) -> None:
        numbers = f"score {metrics['objective/scores']:.3f}, KL {metrics['objective/kl']:.2f}"
        print(f"step {metrics['step']}: {numbers}", flush=True)


arguments = dict(enumerate(sys.argv))
folder, loss = arguments.get(1) or tempfile.mkdtemp(), arguments.get(3, "ppo")
settings_by_loss = {
    "ppo": {"batch_size": 32, "vf_coef": 0.001, "lam": 1.0},  # the value loss is not to move the policy
    "rloo": {"batch_size": 8},  # prompts of an optimizer step, with four answers to each
}
config = TrainConfig(
    **settings_by_loss.get(loss, {}),
    loss=loss,
    model=str(MODEL),
    adapter_path=f"{folder}/adapter",
    num_mini_batches=4,  # with one pass over the answers, every optimizer step has new ones
    num_ppo_epochs=1,
    iters=int(arguments.get(2, 44)),
    learning_rate=8e-4,
    max_grad_norm=0.25,  # a rare bad answer among good ones is a spike
    kl_coef=0.2,
    temperature=1.0,
    max_tokens=64,
    steps_per_report=4,
    save_every=0,
    seed=int(arguments.get(4, 0)),
)
prompts = [str(row["prompt"]) for row in load_pairs("train")]
train(config, prompts=prompts, judge=polite_and_right, listener=ScorePrinter())
