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
NEVER = Moment("none", 0, 0.0)
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


def last_step(run: Path) -> int:
    """The step of the last checkpoint; 0 without one."""
    checkpoint = RunFolder(run).latest_checkpoint()
    return int(checkpoint.name) if checkpoint else 0


def moments_of_run(rng: random.Random, landed: Counter[str], missing: set[str], in_order: bool) -> Iterator[Moment]:
    """The phases in order; or a few of those that are missing, or were hit least, at one of their first visits."""
    if in_order:
        yield from (Moment(phase, 1, 0.5 * rng.random()) for phase in ORDER)
        return
    for _ in range(rng.randint(1, 4)):
        least = min(landed[phase] for phase in WRAPPED)
        phases = sorted(missing) or [phase for phase in WRAPPED if landed[phase] == least]
        yield Moment(rng.choice(phases), rng.randint(1, 2), rng.random())


@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 0), *(pytest.param(seed, KILLS // 4, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))]
)
def test_ended_in_any_phase_the_run_ends_the_same(
    tmp_path: Path, runs: PhasedRuns, whole: dict[str, object], seed: int, kills: int
) -> None:
    """Resumed after each end until it finishes; then a new run begins, until every phase was hit, and often enough."""
    rng, landed, after_last_step, number = random.Random(seed), Counter[str](), Counter[str](), 0
    while landed.total() < kills or {*WRAPPED} - {*landed} or {*AFTER_LAST_STEP} - {*+after_last_step}:
        number += 1
        assert number <= 40 + kills, f"a phase is never hit: {landed}, after the last step {after_last_step}"
        run, output = tmp_path / str(number), tmp_path / "output"
        missing = {*AFTER_LAST_STEP} - {*+after_last_step} if landed.total() >= kills else set()
        moments = moments_of_run(rng, landed, missing, in_order=not kills and number == 1)
        while True:
            was_after_last_step = last_step(run) == STEPS
            code, phase, is_after_last_step = runs.run(arguments(run), output, next(moments, NEVER))
            # The second: it was ended when all was written, and only Python had not ended yet.
            is_done = code == 0 or (code == 2 and "holds a finished run" in output.read_text())
            assert is_done or code == -signal.SIGALRM, output.read_text()
            assert "Traceback" not in output.read_text()
            if is_done:
                break
            landed[phase] += 1
            after_last_step[phase] += was_after_last_step or is_after_last_step
            if (was_after_last_step or is_after_last_step) and phase in AFTER_LAST_STEP:
                assert last_step(run) == STEPS, f"lost in {phase}"
        assert contents(run) == whole
    print(f"ended in {dict(landed)}, after the last step in {dict(after_last_step)}")
