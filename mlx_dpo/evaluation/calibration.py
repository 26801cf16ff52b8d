"""The held-out pairs on which a fused model is measured: the training run's own, or those of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import load_config
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.files.row_files import find_data_files
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import HELD_OUT, ExampleSet, open_example_sets
from mlx_dpo.evaluation.loss_setup import preference_loss_from_config, resolve_loss_settings
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.utils.progress import NO_PROGRESS


@dataclass(frozen=True)
class CalibrationSet:
    """Held-out pairs, and the loss whose rewards are measured on them.

    Attributes:
        example_set: the pairs.
        loss: gives the rewards.
        batch_size: pairs that are measured together.
        name: of the pairs, for messages.
    """

    example_set: ExampleSet
    loss: WeightedLoss
    batch_size: int
    name: str


def find_calibration_set(adapter_path: str | Path, calibrate: str | None, tokenizer: Any) -> CalibrationSet | str:
    """Find pairs to measure an adapter on.

    Args:
        adapter_path: folder of the adapter; with a config.yaml it is a run's folder.
        calibrate: file or folder of pairs; default: the pairs that the run held out.
        tokenizer: of the model.

    Returns:
        The pairs, or a sentence that says why there are none.

    Raises:
        UserError: the pairs or the run's config can't be read.
    """
    file = Path(adapter_path) / "config.yaml"
    config = load_config(file, {}) if file.is_file() else TrainConfig()
    loss = preference_loss_from_config(config)
    config = resolve_loss_settings(config, loss)
    if calibrate is not None:
        name, example_set = calibrate, _pairs_of_file(config, calibrate, tokenizer)
    elif not file.is_file():
        return f"there is no config.yaml beside the adapter in {adapter_path} that names the run's pairs"
    elif config.data in ("", "-"):
        return "the run's pairs came from memory or a pipe, and can't be read again"
    else:
        example_sets = open_example_sets(config, loss, tokenizer, None, None, NO_PROGRESS)
        if HELD_OUT not in example_sets:
            return "the run held no pairs out"
        if example_sets[HELD_OUT].is_unpaired:
            return "the run's rows are single completions, and margins are measured on pairs"
        name, example_set = config.valid_data or config.data, example_sets[HELD_OUT]
    return CalibrationSet(example_set, loss, config.batch_size, name)


def _pairs_of_file(config: TrainConfig, name: str, tokenizer: Any) -> ExampleSet:
    encoder = ExampleEncoder.from_config(config, tokenizer)
    file, held_out = find_data_files(name, None)
    examples = EncodedExamples(ExampleFile.open(held_out or file), encoder)
    usable = examples.usable_indices()
    if not len(usable):
        raise UserError("every pair in it is too long", field="calibrate", hint="Give shorter pairs.")
    return ExampleSet.from_indices(examples, usable)
