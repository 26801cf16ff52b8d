"""training.json: how a run was trained, for the card, beside the adapter, and beside the model that is fused of it.

It stays on this machine; the card says what is in it.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlx_dpo.config import read_yaml
from mlx_dpo.data.hub_datasets import parse_hub_name
from mlx_dpo.errors import UserError
from mlx_dpo.reporting.metrics_log import read_metrics
from mlx_dpo.training.listener import Listener, Metrics, RunPlan, TrainResult
from mlx_dpo.utils.hub_client import HubRepoRef, redact_secrets

RECORD_FILE = "training.json"
_PACKAGES = ("mlx-dpo", "mlx", "mlx-lm")


class TrainingRecorder(Listener):
    """Hears what a run is, and writes it down at its end."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        """command: what was typed, where something was."""
        self.command = list(command)

    def on_run_start(self, plan: RunPlan) -> None:
        self.plan = plan

    def write(self, result: TrainResult) -> Path:
        """Write the file into the run's folder."""
        files = record_from_run_files(result.run)
        told = {
            "command": [redact_secrets(word) for word in self.command],
            "on_hub": settings_on_hub(files.get("config") or {}),
            "versions": package_versions(),
            "machine": f"{platform.system()} {platform.machine()}",
            "ranks": self.plan.ranks,
            "steps": result.steps,
            "first_step": self.plan.first_step,
            "seconds": result.seconds,
            "pairs": self.plan.num_examples,
            "trained_parameters": self.plan.trainable_parameters,
            "all_parameters": self.plan.total_parameters,
            "notes": result.notes,
        }
        file = result.run / RECORD_FILE
        file.write_text(json.dumps({**files, **told}, indent=1, ensure_ascii=False), encoding="utf-8")
        return file


def read_training_record(folder: str | Path) -> dict[str, Any]:
    """What training.json says, and else what a run's other files do; empty where there is neither."""
    file = Path(folder) / RECORD_FILE
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return record_from_run_files(Path(folder))
    return told if isinstance(told, dict) else {}


def copy_training_record(run: str | Path, model: str | Path, fuse: dict[str, Any] | None = None) -> None:
    """Put what is known of a run beside the model that was fused of it, and what the fusing measured as `fuse`."""
    told = read_training_record(run)
    told |= {"fuse": fuse} if fuse else {}
    (Path(model) / RECORD_FILE).write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")


def record_from_run_files(run: Path) -> dict[str, Any]:
    """`config`, the held-out metrics `before` and `after`, and `lines`, all of metrics.jsonl, of a run's folder."""
    try:
        lines, config = read_metrics(run), read_yaml(run / "config.yaml")
    except (UserError, ValueError, OSError):
        return {}
    evaluated = [_plain(line) for line in lines if "eval_loss" in line]
    before = evaluated[0] if evaluated and evaluated[0]["step"] == 0 else {}
    after = evaluated[-1] if len(evaluated) > 1 else {}
    steps = int(max((line["step"] for line in lines), default=0))
    return {"config": config, "before": before, "after": after, "lines": lines, "steps": steps}


def settings_on_hub(config: Mapping[str, Any]) -> list[str]:
    """Which of `model` and `data` are names of the Hub, seen from where the run was started."""
    model, data = (str(config.get(name) or "") for name in ("model", "data"))
    local = Path(model).expanduser().exists()
    return [*(["model"] if not local and HubRepoRef.parse(model) else []), *(["data"] if parse_hub_name(data) else [])]


def _plain(line: Metrics) -> Metrics:
    return {name.removeprefix("eval_"): value for name, value in line.items()}


def package_versions() -> dict[str, str]:
    """Of Python and the packages that a run's numbers come from, where they are installed."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # mlx is mlx-cpu on some machines
            continue
    return found
