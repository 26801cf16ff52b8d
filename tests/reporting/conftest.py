"""Runs to report on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo import TrainConfig, train
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.reporting.diagnostics_listener import DiagnosticsListener, Finding
from mlx_dpo.reporting.html_report import write_report
from mlx_dpo.reporting.metrics_log import MetricsLog
from mlx_dpo.reporting.run_recorder import RunRecorder
from mlx_dpo.training.listener import Listener, Listeners
from tests.conftest import CHECKPOINT

WORDS = ["red", "blue", "green", "tree", "house", "river", "stone", "cloud", "bird", "fish"]
HOSTILE = [
    "<script>window.pwned = 1</script>",
    "</script><img src=x onerror='window.pwned = 2'>",
    '<!-- "quotes" & <b>bold</b> \u2028 -->',
]


def config(run: Path, **knobs: Any) -> TrainConfig:
    settings: dict[str, Any] = {"iters": 8, "learning_rate": 2e-3, "steps_per_eval": 4, "steps_per_report": 2}
    return TrainConfig(model=str(CHECKPOINT), adapter_path=str(run), **settings | knobs)


def pairs(count: int, seed: int, chosen: str = "yes {}", rejected: str = "no {}") -> list[dict[str, Any]]:
    """Pairs that differ by their first word."""
    draw = random.Random(seed)
    return [
        {"prompt": _words(draw), "chosen": chosen.format(_words(draw)), "rejected": rejected.format(_words(draw))}
        for _ in range(count)
    ]


def _words(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=3))


def record(run: Path, rows: list[Any], held_out: list[Any], *more: Listener, samples: int = 0, **knobs: Any) -> Path:
    """Train with the recorders of the train command, and write the page."""
    listeners = Listeners(MetricsLog(), RunRecorder(num_samples=samples), *more)
    train(config(run, **knobs), rows=rows, valid_rows=held_out, listener=listeners)
    write_report(run)
    return run


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rows, samples, tokens and name hold HTML and script."""
    held_out = [
        row | {"prompt": text, "chosen": f"yes {text}"} for row, text in zip(pairs(6, 1), HOSTILE * 2, strict=True)
    ]
    run = record(tmp_path_factory.mktemp("runs") / "a <b>run & <!-- <script>", pairs(32, 0), held_out, samples=2)
    _poison(run / records.REPORT_FOLDER)
    write_report(run)
    return run


def _poison(folder: Path) -> None:
    """Put HTML into sampled completions and into tokens."""
    samples = records.read_jsonl(folder / records.SAMPLES_FILE)
    for line in samples:
        line["answers"] = HOSTILE[: len(line["answers"])]
    records.write_text_atomically(
        folder / records.SAMPLES_FILE, "".join(records.to_json(line) + "\n" for line in samples)
    )
    examples = records.read_json(folder / records.EXAMPLES_FILE)
    for example in examples:
        example["sides"][0]["pieces"][0] = HOSTILE[1]
    records.write_json(folder / records.EXAMPLES_FILE, examples)


@pytest.fixture(scope="session")
def answers_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on single completions with labels."""
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs(16, 0)
        for side in ("chosen", "rejected")
    ]
    return record(tmp_path_factory.mktemp("runs") / "answers", rows, rows[:8], loss="kto")


class FindingCollector(DiagnosticsListener):
    """Collects the findings that are reported while a run trains."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        super().__init__(self.findings.append)
