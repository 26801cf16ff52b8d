"""README.md of a run: what was trained on what, how, what it came to, and how to use it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mlx_dpo.config import TrainConfig, config_from
from mlx_dpo.training.listener import TrainResult

METRICS = {
    "logps/accuracies": "chosen likelier than rejected",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "loss": "loss",
}


def write_card(result: TrainResult) -> Path:
    """Write README.md into a finished run's folder."""
    card = result.run / "README.md"
    card.write_text(card_text(result, config_from(result.run / "config.yaml", {})), encoding="utf-8")
    return card


def card_text(result: TrainResult, config: TrainConfig) -> str:
    """The card as Markdown with the YAML head that the Hub reads."""
    head: dict[str, Any] = {"library_name": "mlx", "pipeline_tag": "text-generation", "tags": ["mlx", "dpo", "lora"]}
    if config.model:
        head = {"base_model": config.model, "base_model_relation": "adapter", **head}
    name = config.model or "a model in memory"
    data = Path(config.data).name or "rows in memory"
    return f"""---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---

# {config.fine_tune_type} adapter of {Path(name).name}

Trained on preference pairs with mlx-dpo {version("mlx-dpo")}: objective `{config.loss}`, beta {config.beta},
{result.steps} steps of {config.batch_size} pairs from `{data}`, in {result.seconds:.0f} s.

{_table(result)}
## Use

```
mlx_lm.generate --model {name} --adapter-path FOLDER --prompt "Your question"
```

## Train it again

`mlx-dpo train -c config.yaml --adapter-path NEW_FOLDER`, with mlx {version("mlx")} and mlx-lm {version("mlx-lm")}.

```yaml
{(result.run / "config.yaml").read_text(encoding="utf-8").strip()}
```
"""


def _table(result: TrainResult) -> str:
    if not result.after:
        return "No pairs were held out, so what changed was not measured.\n"
    lines = ["| on held-out pairs | before | after |", "| --- | --- | --- |"]
    for metric, name in METRICS.items():
        if metric not in result.after:
            continue
        lines.append(f"| {name} | {result.before[metric]:.4f} | {result.after[metric]:.4f} |")
    return "\n".join(lines) + "\n"
