"""The files in a run's report/ folder: what its page is made of, beside metrics.jsonl and config.yaml."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPORT_FOLDER = "report"
METADATA_FILE, EVALUATIONS_FILE, EXAMPLES_FILE, SAMPLES_FILE = (
    "about.json",
    "evaluations.jsonl",
    "pairs.json",
    "samples.jsonl",
)
DEFAULT_NUM_SAMPLES = 16  # held-out prompts that are answered before and after


def to_json(value: Any) -> str:
    """As JSON on one line, numbers to six digits; what JSON has no number for is null."""
    return json.dumps(_plain(value), ensure_ascii=False)


def write_json(file: Path, value: Any) -> None:
    """Write one value whole or not at all."""
    write_whole(file, to_json(value) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write a text aside and move it into place: a reader sees all of it or what was there before."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def read_json(file: Path) -> Any:
    """What is in a file; None where it is missing or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects in a file of lines, without one that was cut off; none where it is missing."""
    if not file.exists():
        return []
    return list(_objects(file.read_text(encoding="utf-8").splitlines()))


def drop_lines_after(file: Path, last_step: int) -> None:
    """Drop the lines of later steps."""
    kept = [line for line in read_jsonl(file) if line["step"] <= last_step]
    write_whole(file, "".join(to_json(line) + "\n" for line in kept))


def _objects(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def command_line() -> str | None:
    """What was typed to start this process; None where it is not ours."""
    ours = sys.argv[0].endswith(("mlx-dpo", "mlx_dpo/__main__.py"))
    return shlex.join(["mlx-dpo", *sys.argv[1:]]) if ours else None
