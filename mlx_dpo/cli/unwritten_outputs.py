"""A finished run whose process ended before it had written the model card and the report."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.errors import UserError
from mlx_dpo.export.card.training_record import record_from_run_files
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.training.checkpoint import read_progress
from mlx_dpo.training.events import RunPlan, TrainResult
from mlx_dpo.training.provenance import changed_settings
from mlx_dpo.training.run_folder import RunFolder


@dataclass(frozen=True)
class UnwrittenRun:
    """A finished run whose model card and report are not written.

    Attributes:
        plan: the size of the run, as if it had not been resumed.
        result: its result, with 0 seconds and without notes.
    """

    plan: RunPlan
    result: TrainResult


def find_unwritten_run(config: TrainConfig, names: Collection[str]) -> UnwrittenRun | None:
    """Find a finished run in `config.adapter_path` whose process ended before `write_run_outputs` was done.

    Args:
        config: settings that the user gave, and defaults.
        names: names of the settings that the user gave. If one of them differs from the run's, another run is meant.

    Returns:
        The run; None if there is none, or if the library or an earlier version trained it.
    """
    folder = RunFolder(config.adapter_path)
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None:
        return None
    try:
        progress, saved = read_progress(checkpoint), read_yaml(checkpoint / CONFIG_FILE)
    except UserError:  # which the run itself reports
        return None
    metadata = records.read_json(folder.path / records.REPORT_FOLDER / records.METADATA_FILE)
    is_other = changed_settings({name: saved[name] for name in names if name in saved}, config)
    if not progress.finished or is_other or not metadata or metadata.get(records.OUTPUTS_WRITTEN_KEY) is not False:
        return None
    plan = RunPlan(
        run=folder.path,
        steps=progress.step,
        first_step=0,
        num_examples=metadata["pairs"],
        example_kind=metadata["what"],
        steps_per_epoch=0,
        steps_per_eval=saved.get("steps_per_eval", 0),
        memory_limit=metadata["memory_limit"],
        trainable_parameters=metadata["trained_parameters"],
        total_parameters=metadata["all_parameters"],
        ranks=metadata["ranks"],
    )
    after = record_from_run_files(folder.path).get("after", {})
    return UnwrittenRun(plan, TrainResult(folder.path, progress.step, 0.0, progress.metrics_before, after))
