"""training.json: how a run was trained, for model cards.

It is written next to the adapter and copied next to a fused model. It stays on this machine; the card is published.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.data.files.hub_datasets import parse_hub_name
from mlx_dpo.errors import UserError
from mlx_dpo.reporting.metrics_log import read_metrics
from mlx_dpo.training.events import RunPlan, TrainResult
from mlx_dpo.training.listener import Listener
from mlx_dpo.utils.atomic_write import atomic_write
from mlx_dpo.utils.formatting import strip_eval_prefix
from mlx_dpo.utils.hub_client import HubRepoRef, redact_secrets

RECORD_FILE = "training.json"
_PACKAGES = ("mlx-dpo", "mlx", "mlx-lm")


class TrainingRecorder(Listener):
    """Writes training.json at the end of a run."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        """Prepare for a run.

        Args:
            command: the command line, if the run was started by one.
        """
        self.command = list(command)

    def on_run_start(self, plan: RunPlan) -> None:
        """Remember the run's plan."""
        self.plan = plan

    def write(self, result: TrainResult) -> Path:
        """Write training.json into the run's folder and return its path."""
        record = record_from_run_files(result.run)
        record |= {
            "command": [redact_secrets(word) for word in self.command],
            "on_hub": settings_on_hub(record.get("config") or {}),
            "versions": package_versions(),
            "machine": f"{platform.system()} {platform.machine()}",
            "ranks": self.plan.ranks,
            "steps": result.steps,
            "first_step": self.plan.first_step,
            "seconds": result.seconds,
            "pairs": self.plan.num_examples,
            # Not on the card; for scripts that read the record.
            "trained_parameters": self.plan.trainable_parameters,
            "all_parameters": self.plan.total_parameters,
            "notes": result.notes,
        }
        return _write_record(result.run, record)


def read_training_record(folder: str | Path) -> dict[str, Any]:
    """Read training.json, or else what the other files of a run contain; empty if there is neither."""
    try:
        record = json.loads((Path(folder) / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return record_from_run_files(Path(folder))
    return record if isinstance(record, dict) else {}


def copy_training_record(run: str | Path, model: str | Path, fuse: dict[str, Any] | None = None) -> None:
    """Copy a run's record next to the model that was fused from it.

    Args:
        run: the run's folder.
        model: the fused model's folder.
        fuse: what was measured while fusing, see `FusedModelReport.to_mapping`; stored under `fuse`.
    """
    _write_record(Path(model), read_training_record(run) | ({"fuse": fuse} if fuse else {}))


def record_from_run_files(run: Path) -> dict[str, Any]:
    """The part of a record that a run's other files contain.

    Returns:
        `config`; the validation metrics `before` and `after` training; `lines`, all of metrics.jsonl; and `steps`, the
        last step. Empty if a file can't be read.
    """
    try:
        lines, config = read_metrics(run), read_yaml(run / CONFIG_FILE)
    except (UserError, ValueError, OSError):
        return {}
    evaluations = [strip_eval_prefix(line) for line in lines if "eval_loss" in line]
    before = evaluations[0] if evaluations and evaluations[0]["step"] == 0 else {}
    after = evaluations[-1] if len(evaluations) > 1 else {}
    steps = int(max((line["step"] for line in lines), default=0))
    return {"config": config, "before": before, "after": after, "lines": lines, "steps": steps}


def settings_on_hub(config: Mapping[str, Any]) -> list[str]:
    """Which of the settings `model` and `data` are Hub names rather than local paths, seen from the current folder."""
    model, data = (str(config.get(name) or "") for name in ("model", "data"))
    is_local = Path(model).expanduser().exists()
    settings = ["model"] if not is_local and HubRepoRef.parse(model) else []
    return [*settings, "data"] if parse_hub_name(data) else settings


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect a run's numbers."""
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # mlx is mlx-cpu on some machines
            continue
    return versions


def _write_record(folder: Path, record: dict[str, Any]) -> Path:
    file = folder / RECORD_FILE
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    return file
