"""The files of rounds, and the record of the settings that they were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.example_sets import Rows
from mlx_dpo.reporting.evaluation_records import write_text_atomically
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.utils.json_files import read_json

SETTINGS_FILE = "settings.json"


class RoundFolder:
    """The folder of one round, or of the policy that the first round starts from.

    Attributes:
        path: the folder.
        samples: completions of the training prompts.
        pairs: what the judge made of them.
        adapter: the run's folder of the training.
        answers: completions of the evaluation prompts, by the policy that was trained.
        evaluation: the results. It is written last: the round is done when it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples, self.pairs = path / "samples.jsonl", path / "pairs.jsonl"
        self.adapter, self.answers = path / "adapter", path / "answers.jsonl"
        self.evaluation = path / "evaluation.json"

    def read_evaluation(self) -> dict[str, Any] | None:
        """The results; None if the round is not done."""
        return read_json(self.evaluation) if self.evaluation.exists() else None

    def write_evaluation(self, results: Mapping[str, Any]) -> None:
        """Write the results. Raises `OSError`."""
        write_json_object(self.evaluation, results)


class RoundsFolder:
    """The folder of all rounds.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prompts, self.eval_prompts = path / "prompts.jsonl", path / "eval-prompts.jsonl"
        self.settings = path / SETTINGS_FILE

    @property
    def start(self) -> RoundFolder:
        """The folder with the answers of the policy that the first round starts from."""
        return RoundFolder(self.path / "start")

    def round(self, number: int) -> RoundFolder:
        """The folder of a round, counted from 1."""
        return RoundFolder(self.path / f"round-{number}")

    def open(self, settings: Mapping[str, Any], prompts: Rows, eval_prompts: Rows) -> None:
        """Write settings and prompts, or check that those in the folder are the same.

        Args:
            settings: all that the results depend on, as JSON values.
            prompts: rows of the training prompts.
            eval_prompts: rows of the evaluation prompts.

        Raises:
            UserError: the folder is of other settings or prompts, holds something else, or can't be written.
        """
        contents = {self.prompts: _to_lines(prompts), self.eval_prompts: _to_lines(eval_prompts)}
        where = Where(str(self.path))
        hint = "Give another --output-dir, or the settings of these rounds."
        try:
            if self.settings.exists():
                different = _different(json.loads(json.dumps(settings)), read_json(self.settings))
                different += [file.stem for file, text in contents.items() if file.read_text(encoding="utf-8") != text]
                if different:
                    message = "the rounds in it have another " + " and another ".join(f"`{n}`" for n in different)
                    raise UserError(message, where=where, hint=hint)
                return
            if self.path.exists() and self.round(1).path.exists():
                raise UserError("holds rounds without their settings", where=where, hint="Give another --output-dir.")
            self.path.mkdir(parents=True, exist_ok=True)
            for file, text in contents.items():
                write_text_atomically(file, text)
            write_json_object(self.settings, settings)
        except OSError as error:
            raise UserError(f"can't be written: {error.strerror or error}", where=where) from None


def is_finished(run: str | Path) -> bool:
    """Whether a run's folder holds a finished training."""
    folder = RunFolder(run)
    return folder.latest_checkpoint() is not None and folder.unfinished_checkpoint() is None


def write_json_object(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object to a file, atomically. Raises `OSError`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps(value, indent=2) + "\n")


def _different(settings: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    return [name for name in settings if settings[name] != recorded.get(name)]


def _to_lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
