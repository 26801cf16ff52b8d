"""Commands run as in tests/cli; a finished run of the tiny model as they leave it, and the model fused of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlx_dpo.config import TrainConfig
from mlx_dpo.export.card.model_card import write_card
from mlx_dpo.export.card.training_record import TrainingRecorder, copy_training_record
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
from mlx_dpo.reporting.html_report import write_report
from mlx_dpo.reporting.metrics_log import MetricsLog
from mlx_dpo.training.listener import Listeners
from mlx_dpo.training.run import train
from tests.cli.conftest import mlx_dpo
from tests.conftest import CHECKPOINT, PAIRS

__all__ = ["finished", "fused", "mlx_dpo", "run"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder; to be read only."""
    run = tmp_path_factory.mktemp("runs") / "polite"
    settings = {"data": str(PAIRS), "valid_data": str(PAIRS), "iters": 6, "learning_rate": 1e-3, "steps_per_eval": 2}
    config = TrainConfig(model=str(CHECKPOINT), adapter_path=str(run), steps_per_report=2, save_every=3, **settings)
    recorder = TrainingRecorder(["mlx-dpo", "train", "--model", str(CHECKPOINT), "--data", str(PAIRS), "--iters", "6"])
    recorder.write(train(config, listener=Listeners(MetricsLog(), recorder)))
    write_card(run)
    write_report(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "polite"))


@pytest.fixture
def fused(run: Path, tmp_path: Path) -> Path:
    """The model fused of it."""
    folder = fuse_adapter(str(CHECKPOINT), run, tmp_path / "polite-fused").path
    copy_training_record(run, folder)
    write_card(folder)
    return folder
