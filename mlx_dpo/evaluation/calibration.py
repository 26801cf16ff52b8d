"""The held-out pairs that a fused model is measured on: the run's own, or a file's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.config import TrainConfig, config_from
from mlx_dpo.data.chat_encoding import Encoder
from mlx_dpo.data.encoded_examples import EncodedPairs
from mlx_dpo.data.example_sources import PairFile, find_data
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import HELD_OUT, PairSet, open_pair_sets
from mlx_dpo.objectives import Loss
from mlx_dpo.training.run import make_loss, with_loss


@dataclass(frozen=True)
class Calibration:
    """Held-out pairs, and the loss whose rewards are measured on them.

    Attributes:
        name: of the pairs, for people.
    """

    held_out: PairSet
    loss: Loss
    batch_size: int
    name: str


def find_calibration(adapter_path: str | Path, calibrate: str | None, tokenizer: Any) -> Calibration | str:
    """The pairs of the file or folder `calibrate`, or those that the run in `adapter_path` held out.

    Returns:
        They, or a sentence that says why there are none.

    Raises:
        UserError: what was given or is recorded can't be read.
    """
    file = Path(adapter_path) / "config.yaml"
    config = config_from(file, {}) if file.is_file() else TrainConfig()
    loss = make_loss(config)
    config = with_loss(config, loss)
    if calibrate is not None:
        name, held_out = calibrate, _of_file(config, calibrate, tokenizer)
    elif not file.is_file():
        return f"there is no config.yaml beside the adapter in {adapter_path} that names the run's pairs"
    elif config.data in ("", "-"):
        return "the run's pairs came from memory or a pipe, and are not to be found again"
    else:
        sets = open_pair_sets(config, loss, tokenizer, None, None, lambda text: None)
        if HELD_OUT not in sets:
            return "the run held no pairs out"
        if sets[HELD_OUT].single:
            return "the run's rows are single answers, and what is kept is measured on pairs"
        name, held_out = config.valid_data or config.data, sets[HELD_OUT]
    return Calibration(held_out, loss, config.batch_size, name)


def _of_file(config: TrainConfig, name: str, tokenizer: Any) -> PairSet:
    encoder = Encoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
    file, held_out = find_data(name, None)
    pairs = EncodedPairs(PairFile.open(held_out or file), encoder)
    usable = pairs.usable()
    if not len(usable):
        raise UserError("every pair in it is too long", field="calibrate", hint="Give shorter pairs.")
    return PairSet.of(pairs, usable)
