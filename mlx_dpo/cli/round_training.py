"""The training of a round, as `mlx-dpo train` runs it."""

from __future__ import annotations

from mlx_dpo.cli.run_listeners import display_listeners, write_run_outputs
from mlx_dpo.cli.train import train_here, train_supervised
from mlx_dpo.config import TrainConfig
from mlx_dpo.reporting.evaluation_records import DEFAULT_NUM_SAMPLES
from mlx_dpo.reporting.phase_progress import PhaseProgress


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
        """Train, or resume a run that was interrupted."""
        self.progress.stop()
        listeners = display_listeners(config, warnings_only=self.quiet)
        write_run_outputs(self.run(config, listeners, False, False, DEFAULT_NUM_SAMPLES), listeners)
