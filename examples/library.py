"""Train on rows in memory with a model in memory, and print the margins: the library without the command line.

    python examples/library.py [FOLDER]

Uses the bundled tiny model, so it needs no network and takes a few seconds.
"""

import sys
import tempfile

import mlx_lm

from mlx_dpo import Listener, TrainConfig, evaluate, train
from mlx_dpo.demo import MODEL, load_pairs


class MarginPrinter(Listener):
    """Prints the reward margin every five steps."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        if step % 5 == 0:
            print(f"step {step}: margin {metrics['rewards/margins']:.3f}")


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
config = TrainConfig(model=str(MODEL), adapter_path=f"{folder}/adapter", iters=15, learning_rate=3e-4)
model, tokenizer = mlx_lm.load(str(MODEL))
result = train(
    config,
    model=model,
    tokenizer=tokenizer,
    rows=load_pairs("train")[:120],
    valid_rows=load_pairs("valid")[:16],
    listener=MarginPrinter(),
)
print("held-out reward accuracy:", result.after["rewards/accuracies"])

# Evaluate the trained model in memory against itself without the adapter; then the adapter in the folder.
in_memory = evaluate(config, model=model, tokenizer=tokenizer, rows=load_pairs("valid")[:16])
from_folder = evaluate(config, adapter_path=result.run, rows=load_pairs("valid")[:16])
assert in_memory == from_folder
