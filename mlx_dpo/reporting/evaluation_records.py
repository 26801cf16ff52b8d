"""The files in a run's report/ folder, from which its page is made together with metrics.jsonl and config.yaml."""

from __future__ import annotations

import json
import math
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_dpo.utils.atomic_write import atomic_write

REPORT_FOLDER = "report"
METADATA_FILE = "about.json"
EVALUATIONS_FILE = "evaluations.jsonl"
EXAMPLES_FILE = "pairs.json"
SAMPLES_FILE = "samples.jsonl"
OUTPUTS_WRITTEN_KEY = "outputs_written"  # of the metadata: false until a command has written card and report
DEFAULT_NUM_SAMPLES = 8  # held-out prompts for which completions are sampled before and after training


def to_json(value: Any) -> str:
    """JSON on one line: numbers have six significant digits, and NaN and infinity are null."""
    return json.dumps(_rounded_and_finite(value), ensure_ascii=False)


def write_json(file: Path, value: Any) -> None:
    """Write one JSON value atomically."""
    write_text_atomically(file, to_json(value) + "\n")


def write_text_atomically(file: Path, text: str) -> None:
    """Write a text file that readers see either as it was or complete."""
    with atomic_write(file) as partial:
        partial.write_text(text, encoding="utf-8")


def mark_outputs_written(run: Path) -> None:
    """Record in a run's metadata that its card and its report are written."""
    file = run / REPORT_FOLDER / METADATA_FILE
    if metadata := read_json(file):
        write_json(file, {**metadata, OUTPUTS_WRITTEN_KEY: True})


def read_json(file: Path) -> Any:
    """Return the value in a JSON file; None if it is missing or not valid (`utils.json_files.read_json` raises)."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects in a JSONL file, without lines that a crash cut off. Empty if the file is missing."""
    objects = []
    with suppress(FileNotFoundError):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                objects.append(json.loads(line))
    return objects


def drop_lines_after(file: Path, last_step: int) -> None:
    """Remove the lines of steps after `last_step` from a JSONL file, which a resumed run will write again."""
    kept = [line for line in read_jsonl(file) if line["step"] <= last_step]
    write_text_atomically(file, "".join(to_json(line) + "\n" for line in kept))


def command_line() -> str | None:
    """The shell command that started this process, or None if it was not an mlx-dpo command."""
    if not sys.argv[0].endswith(("mlx-dpo", "mlx_dpo/__main__.py")):
        return None
    return shlex.join(["mlx-dpo", *sys.argv[1:]])


def _rounded_and_finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded_and_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded_and_finite(item) for item in value]
    return value
