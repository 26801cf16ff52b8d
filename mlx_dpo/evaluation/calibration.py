"""The held-out pairs that a fused model is measured on: the run's own, or a file's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.config import TrainConfig, config_from
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.example_sources import ExampleFile, find_data_files
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import HELD_OUT, ExampleSet, open_example_sets
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.training.run import loss_from_config, resolve_loss_settings


@dataclass(frozen=True)
class CalibrationSet:
    """Held-out pairs, and the loss whose rewards are measured on them.

    Attributes:
        name: of the pairs, for people.
    """

    example_set: ExampleSet
    loss: WeightedLoss
    batch_size: int
    name: str


def find_calibration_set(adapter_path: str | Path, calibrate: str | None, tokenizer: Any) -> CalibrationSet | str:
    """The pairs of the file or folder `calibrate`, or those that the run in `adapter_path` held out.

    Returns:
        They, or a sentence that says why there are none.

    Raises:
        UserError: what was given or is recorded can't be read.
    """
    file = Path(adapter_path) / "config.yaml"
    config = config_from(file, {}) if file.is_file() else TrainConfig()
    loss = loss_from_config(config)
    config = resolve_loss_settings(config, loss)
    if calibrate is not None:
        name, held_out = calibrate, _of_file(config, calibrate, tokenizer)
    elif not file.is_file():
        return f"there is no config.yaml beside the adapter in {adapter_path} that names the run's pairs"
    elif config.data in ("", "-"):
        return "the run's pairs came from memory or a pipe, and are not to be found again"
    else:
        sets = open_example_sets(config, loss, tokenizer, None, None, lambda text: None)
        if HELD_OUT not in sets:
            return "the run held no pairs out"
        if sets[HELD_OUT].is_unpaired:
            return "the run's rows are single answers, and what is kept is measured on pairs"
        name, held_out = config.valid_data or config.data, sets[HELD_OUT]
    return CalibrationSet(held_out, loss, config.batch_size, name)


def _of_file(config: TrainConfig, name: str, tokenizer: Any) -> ExampleSet:
    encoder = ExampleEncoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
    file, held_out = find_data_files(name, None)
    pairs = EncodedExamples(ExampleFile.open(held_out or file), encoder)
    usable = pairs.usable_indices()
    if not len(usable):
        raise UserError("every pair in it is too long", field="calibrate", hint="Give shorter pairs.")
    return ExampleSet.from_indices(pairs, usable)
