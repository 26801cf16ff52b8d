"""Train the bundled model on the bundled pairs with every loss at its default settings.

    python benchmarks/losses.py [--only sigmoid,ipo] [--out docs/benchmarks/losses.md]

320 of the 800 training pairs, at a learning rate that suits so small a model. About half a minute a loss on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mlx_dpo import TrainConfig, train
from mlx_dpo.demo import MODEL, PAIRS, load_pairs
from mlx_dpo.objectives import LOSS_FUNCTIONS

STEPS, RATE = 40, 6e-4
ABOUT = f"""# Every loss on the bundled pairs

Made by `python benchmarks/losses.py --out docs/benchmarks/losses.md`: {STEPS} steps of 8 pairs at
`--learning-rate {RATE}`, all else by default; then the 128 held-out pairs. A margin is in the
loss's own rewards (`mlx-dpo losses NAME`), so margins of unlike losses don't compare. `likelier` is the share of pairs
whose chosen completion is the likelier one.
`discopop` has a minimum where the chosen answer is a little the less likely, and stays there from a start at 0
(`mlx-dpo losses discopop`). For `odpo` the chosen answers have 3 points and the rejected ones 1.

| loss | settings | reward accuracy | likelier | reward margin |
| --- | --- | --- | --- | --- |
"""


def measured(name: str) -> dict[str, float]:
    """Held-out metrics after training with a loss."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            model=str(MODEL),
            data=str(PAIRS),
            adapter_path=folder,
            loss=name,
            iters=STEPS,
            learning_rate=RATE,
            steps_per_eval=0,
        )
        if LOSS_FUNCTIONS[name].needs_scores:
            return train(config, rows=scored("train"), valid_rows=scored("valid")).after
        return train(config).after


def scored(name: str) -> list[dict[str, object]]:
    """The bundled pairs with score 3 for chosen and 1 for rejected."""
    return [{**row, "score_chosen": 3, "score_rejected": 1} for row in load_pairs(name)]


def row(name: str, after: dict[str, float]) -> str:
    """A loss's row of the table."""
    loss = LOSS_FUNCTIONS[name]
    settings = ", ".join(f"{key} {loss.settings[key]:g}" for key in {"beta": None, **loss.keyword_defaults})
    shares = [f"{after[metric]:.1%}" for metric in ("rewards/accuracies", "logps/accuracies")]
    return " | ".join([f"| `{name}`", settings, *shares, f"{after['rewards/margins']:.3f} |\n"])


def lines(names: Iterable[str]) -> Iterable[str]:
    """The page, piece by piece."""
    yield ABOUT
    for name in names:
        yield row(name, measured(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    policies = [name for name, loss in LOSS_FUNCTIONS.items() if loss.has_token_logps]
    parser.add_argument("--only", default=",".join(policies), help="names of losses, separated by commas")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    arguments = parser.parse_args()
    page = ""
    for line in lines(arguments.only.split(",")):
        print(line, end="", flush=True)
        page += line
    if arguments.out:
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
