"""A process ended in the middle of every phase of a run, evaluations and what follows the last step included."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_dpo.training.run_folder import RunFolder
from tests.conftest import CHECKPOINT, PAIRS
from tests.supervision.phased_run import WRAPPED, Moment, PhasedRuns

STEPS = 4
KILLS = 200
AFTER_LAST_STEP = ("samples", "evaluation", "kl", "progress", "record", "report", "card")
# In the order of a run, so that each process does a part of it only.
ORDER = ("samples", "evaluation", "step", "checkpoint", "adapter", "kl", "progress", *AFTER_LAST_STEP)
OUTPUTS = ("README.md", "report.html", "training.json")


def arguments(run: Path) -> list[str]:
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--valid-data", PAIRS, "--adapter-path", run, "--iters", STEPS)
    flags += ("--batch-size", 3, "--save-every", 2, "--steps-per-eval", 2, "--dropout", 0.1, "--samples", 2)
    return ["train", *map(str, flags), "--learning-rate", "1e-3", "--no-supervise", "--quiet"]


def contents(run: Path) -> dict[str, object]:
    """What must be equal, and which outputs there are."""
    files = ("adapters.safetensors", "adapter_config.json")
    files += tuple(f"report/{name}" for name in ("evaluations.jsonl", "samples.jsonl", "pairs.json"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "eval_loss" in line]
    present = [name for name in OUTPUTS if (run / name).is_file()]
    return {**{name: (run / name).read_bytes() for name in files}, "evaluations": evaluations, "outputs": present}


@pytest.fixture(scope="module")
def runs() -> PhasedRuns:
    return PhasedRuns()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, runs: PhasedRuns) -> dict[str, object]:
    """A run that nobody disturbed, and how long its phases take."""
    folder = tmp_path_factory.mktemp("whole")
    code, *_ = runs.run(arguments(folder / "run"), folder / "output")
    assert code == 0, (folder / "output").read_text()
    assert set(runs.usual) == set(WRAPPED), "every phase was seen"
    return contents(folder / "run")


def moments_of_run(rng: random.Random, landed: Counter[str], in_order: bool) -> Iterator[Moment]:
    """The phases in order, or a few of those that were hit least often, each at one of its first visits."""
    if in_order:
        yield from (Moment(phase, 1, 0.5 * rng.random()) for phase in ORDER)
        return
    for _ in range(rng.randint(1, 4)):
        least = min(landed[phase] for phase in WRAPPED)
        phase = rng.choice([phase for phase in WRAPPED if landed[phase] == least])
        yield Moment(phase, rng.randint(1, 2), rng.random())


@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 0), *(pytest.param(seed, KILLS // 4, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))]
)
def test_ended_in_any_phase_the_run_ends_the_same(
    tmp_path: Path, runs: PhasedRuns, whole: dict[str, object], seed: int, kills: int
) -> None:
    """Resumed after each end until it finishes; then a new run begins, until every phase was hit, and often enough."""
    rng, landed, after_last_step, number = random.Random(seed), Counter[str](), Counter[str](), 0
    while landed.total() < kills or {*WRAPPED} - {*landed} or {*AFTER_LAST_STEP} - {*after_last_step}:
        number += 1
        assert number <= 10 + kills, f"a phase is never hit: {landed}, after the last step {after_last_step}"
        run, output, code = tmp_path / str(number), tmp_path / "output", None
        for moment in moments_of_run(rng, landed, in_order=not kills and number == 1):
            code, phase, is_after_last_step = runs.run(arguments(run), output, moment)
            assert code in (0, -signal.SIGALRM), output.read_text()
            if code == 0:
                break
            landed[phase] += 1
            after_last_step[phase] += is_after_last_step
            if is_after_last_step and phase not in ("step", "checkpoint", "other"):
                assert int(RunFolder(run).require_latest_checkpoint().name) == STEPS, f"lost in {phase}"
        if code != 0:
            code, *_ = runs.run(arguments(run), output)
        assert code == 0, output.read_text()
        assert "Traceback" not in output.read_text()
        assert contents(run) == whole
    print(f"ended in {dict(landed)}, after the last step in {dict(after_last_step)}")
