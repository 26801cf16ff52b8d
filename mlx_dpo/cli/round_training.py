"""The training of a round, as `mlx-dpo train` runs it."""

from __future__ import annotations

from mlx_dpo.cli.run_listeners import display_listeners, write_run_outputs
from mlx_dpo.cli.train import train_here, train_supervised
from mlx_dpo.cli.unwritten_outputs import find_unwritten_run
from mlx_dpo.config import TrainConfig
from mlx_dpo.reporting.evaluation_records import DEFAULT_NUM_SAMPLES
from mlx_dpo.reporting.phase_progress import PhaseProgress
from mlx_dpo.rounds.round_folders import is_finished


class RoundTrainer:
    """Trains with the displays of `mlx-dpo train`, and writes the run's page and model card.

    Args:
        progress: what the rounds show; it stops while training shows its own.
        supervised: train in a child process.
        quiet: print warnings only.
    """

    def __init__(self, progress: PhaseProgress, *, supervised: bool, quiet: bool) -> None:
        self.progress, self.quiet = progress, quiet
        self.run = train_supervised if supervised else train_here

    def __call__(self, config: TrainConfig) -> None:
        """Train, or resume a run that was interrupted; of a finished one, write what is missing."""
        unwritten = find_unwritten_run(config, ())
        if is_finished(config.adapter_path) and unwritten is None:
            return
        self.progress.stop()
        listeners = display_listeners(config, warnings_only=self.quiet)
        if unwritten:
            listeners.training_recorder.on_run_start(unwritten.plan)
        result = unwritten.result if unwritten else self.run(config, listeners, False, False, DEFAULT_NUM_SAMPLES)
        write_run_outputs(result, listeners)
