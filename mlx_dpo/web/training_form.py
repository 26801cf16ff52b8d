"""The settings of a run that the page offers, and the arguments of `mlx-dpo` that they make."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.config_fields import unwrap_optional
from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.shuffled_epochs import ShuffledEpochs, split_held_out
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.example_sets import example_reader
from mlx_dpo.evaluation.loss_setup import loss_from_config
from mlx_dpo.objectives import LOSS_FUNCTIONS
from mlx_dpo.training.optimizer import total_steps
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.web.verdicts import VerdictFiles

LOSSES = ("sigmoid", "ipo", "simpo", "orpo", "kto", "sft")
SETTINGS = (
    *("loss", "beta", "learning_rate", "epochs", "iters"),
    *("batch_size", "max_length", "rank", "adapter_path"),
)
ROWS_FILE = "rows.jsonl"  # in a run's folder: the rows as they were when it began, so that it can be resumed
MAX_NAME = 60  # characters of a folder's name, four bytes each at most
MAX_REPORTS = 200  # points of the curves
_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
_HINTS = typing.get_type_hints(TrainConfig)


@dataclasses.dataclass(frozen=True)
class RunOutline:
    """What a run would do.

    Attributes:
        source: the file of its rows.
        kind: of its examples, "pairs" or "completions".
        num_training: examples to train on.
        num_held_out: examples to hold out.
        steps: optimizer steps.
    """

    source: str
    kind: str
    num_training: int
    num_held_out: int
    steps: int


class TrainingForm:
    """The settings that a page offers for training on its files."""

    def __init__(self, verdicts: VerdictFiles, model: str, rendering: Mapping[str, Any]) -> None:
        """Join the parts.

        Args:
            verdicts: the rows.
            model: folder or Hub id of the model.
            rendering: how prompts become tokens: `raw` and `chat_template_kwargs`.
        """
        self.verdicts, self.rendering = verdicts, dict(rendering)
        # absolute, so that a server that is started elsewhere can resume the run
        self.model = str(Path(model).resolve()) if Path(model).is_dir() else model
        self.folder = verdicts.preferences.path.parent.resolve()

    def describe(self) -> dict[str, Any]:
        """The settings with their defaults and help texts, and the losses that the rows are for."""
        losses = [LOSS_FUNCTIONS[name] for name in LOSSES if self._fits(name)]
        return {
            "settings": [self._describe_setting(name) for name in SETTINGS],
            "losses": [
                {
                    "name": loss.name,
                    "summary": loss.summary.partition("\n\n")[0],
                    "when": loss.when_to_use,
                    "beta": loss.settings["beta"],
                }
                for loss in losses
            ],
        }

    def _describe_setting(self, name: str) -> dict[str, Any]:
        field = _FIELDS[name]
        kind, _ = unwrap_optional(_HINTS[name])
        default = self._free_name(TrainConfig.adapter_path) if name == "adapter_path" else field.default
        return {"name": name, "type": kind.__name__, "default": default, "help": field.metadata["help"]}

    def _fits(self, loss: str) -> bool:
        """Whether a loss can use the rows; without rows, whether it could."""
        counts = self.verdicts.counts()
        return counts["preferences"] > 0 or counts["labels"] == 0 or _is_for_labels(TrainConfig(loss=loss))

    def _free_name(self, name: str) -> str:
        candidates = (name if i == 1 else f"{name}-{i}" for i in range(1, sys.maxsize))
        return next(candidate for candidate in candidates if not (self.folder / candidate).exists())

    def config(self, values: Any) -> TrainConfig:
        """The settings that a page has sent, checked.

        Raises:
            UserError: one is unknown, of the wrong type or out of range.
        """
        if not isinstance(values, dict) or not set(values) <= set(SETTINGS):
            raise UserError(f"must be an object of {', '.join(SETTINGS)}", field="settings")
        sent = {name: value for name, value in values.items() if value is not None}
        config = TrainConfig.from_mapping({"adapter_path": self._free_name(TrainConfig.adapter_path), **sent})
        if config.loss not in LOSSES or not self._fits(config.loss):
            names = ", ".join(filter(self._fits, LOSSES))
            raise UserError(f"must be one of {names}, for these rows", field="loss")
        name = config.adapter_path
        if Path(name).name != name or name.startswith((".", "-")) or not name.isprintable() or len(name) > MAX_NAME:
            raise UserError("must be a short name of a folder, without a path", field="adapter_path")
        uses_labels = _is_for_labels(config) and self.verdicts.counts()["labels"] > 0
        source = self.verdicts.labels if uses_labels else self.verdicts.preferences
        folder = self.folder / name
        return config.replace(model=self.model, data=str(source.path), adapter_path=str(folder), **self.rendering)

    def outline(self, config: TrainConfig) -> RunOutline:
        """Count what a run would train on, from the rows as they are now.

        Raises:
            UserError: a row can't be used, or there is none.
        """
        if not Path(config.data).exists():
            raise UserError("there are no rows to train on yet", hint="Collect some preferences first.")
        loss = loss_from_config(config)
        source = ExampleFile.open(config.data, parse=example_reader(loss))
        try:
            training, held_out = split_held_out(len(source), config.valid_pairs, config.seed)
            kind = "pairs" if isinstance(source[0], Pair) else "completions"
        finally:
            source.close()
        steps = total_steps(config, ShuffledEpochs(training, config.batch_size, config.seed).steps_per_epoch)
        return RunOutline(config.data, kind, len(training), len(held_out), steps)

    def prepare(self, config: TrainConfig) -> list[str]:
        """Make a run's folder with a copy of the rows in it, and return the arguments of `mlx-dpo` that train.

        Raises:
            UserError: there is a run in it, the rows can't be used, or it can't be written.
        """
        outline, run = self.outline(config), RunFolder(config.adapter_path)
        if run.unfinished_checkpoint():
            raise UserError("holds a run that is not finished", field="adapter_path", hint="Choose another name.")
        try:
            run.require_new()
        except UserError as error:
            raise UserError(error.message, field="adapter_path", hint="Choose another name.") from None
        rows = run.path / ROWS_FILE
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(config.data, rows)
        except OSError as error:
            message = f"can't be written: {error.strerror or error}"
            raise UserError(message, where=Where(str(rows)), field="adapter_path") from None
        report_every = max(1, outline.steps // MAX_REPORTS)
        return _train_arguments(config.replace(data=str(rows), steps_per_report=report_every))


def _train_arguments(config: TrainConfig) -> list[str]:
    """A flag for each setting that is not the default."""
    arguments = ["train"]
    for field in dataclasses.fields(TrainConfig):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        else:
            arguments += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return arguments


def _is_for_labels(config: TrainConfig) -> bool:
    """Whether a loss is made for single completions that are labelled as good or bad."""
    loss = loss_from_config(config)
    return loss.unpaired and not loss.likelihood_only
