"""The commands that `soak.py --chaos` disturbs: how each is started, what it leaves, and what it must not lose.

All rounds have the same paths, so that what a command leaves can be compared byte for byte, paths in it included.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

from processes import HERE, with_blas

sys.path.insert(0, str(HERE.parent))
from mlx_dpo.demo import MODEL, load_pairs
from tests.hub.fixture import environment
from tests.hub.server import Hub

TRAIN_ROWS, VALID_ROWS, SCORED_ROWS = 48, 8, 32
SCORE_BATCH = 4
REPO = "tester/chaos"


class Workplace:
    """Copies of the bundled model and pairs that a round may damage, and the folder that it writes to.

    Attributes:
        disk: what a full disk fills: the cache and the output.
        output: where commands write.
        hub: the local Hub that `push` pushes to.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.disk, self.pristine = root, root / "disk", root / "pristine"
        self.model, self.data, self.adapter = root / "model", root / "data", root / "adapter"
        self.cache, self.output = self.disk / "cache", self.disk / "parent" / "out"
        self.hub = Hub(root / "hub")
        for folder in (self.disk, self.pristine):
            folder.mkdir(parents=True)
        self._make_inputs()

    def _make_inputs(self) -> None:
        shutil.copytree(MODEL, self.pristine / "model")
        (self.pristine / "data").mkdir()
        train, valid = load_pairs("train"), load_pairs("valid")
        for name, rows in (("train", train[:TRAIN_ROWS]), ("valid", valid[:VALID_ROWS])):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.pristine / "data" / f"{name}.jsonl").write_text(text)
        scored = "".join(json.dumps(row) + "\n" for row in train[:SCORED_ROWS])
        (self.pristine / "data" / "scored.jsonl").write_text(scored)

    def reset(self) -> None:
        """Put back the inputs and the cache as they were; the output is empty."""
        for target in (self.model, self.data, self.adapter):
            shutil.rmtree(target, ignore_errors=True)
            if (self.pristine / target.name).is_dir():
                shutil.copytree(self.pristine / target.name, target)
        for entry in self.disk.iterdir():
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()
        if (self.pristine / "cache").is_dir():
            shutil.copytree(self.pristine / "cache", self.cache)
        self.output.mkdir(parents=True)
        shutil.rmtree(self.root / "hub" / "repos", ignore_errors=True)
        shutil.rmtree(self.root / "hub" / "objects", ignore_errors=True)
        (self.root / "hub" / "objects").mkdir()

    def keep(self, name: str, folder: Path) -> None:
        """Let every round begin with this folder as `name`."""
        shutil.rmtree(self.pristine / name, ignore_errors=True)
        if folder.is_dir():
            shutil.copytree(folder, self.pristine / name)

    def environment(self) -> dict[str, str]:
        """The environment of a command."""
        paths = {"PYTHONPATH": str(HERE.parent), "XDG_CACHE_HOME": str(self.cache), "OPENBLAS_NUM_THREADS": "1"}
        return {**with_blas(), **environment(self.hub, self.disk / "hub-cache"), **paths}


class ChaosJob(ABC):
    """A command of `mlx-dpo`, with what it leaves.

    Attributes:
        name: of the command.
        faults_without_effect: names of faults that the command has nothing to do with.
    """

    name: str
    reads_data = True

    def __init__(self, place: Workplace) -> None:
        self.place = place

    @property
    @abstractmethod
    def arguments(self) -> list[object]:
        """The command line."""

    @abstractmethod
    def result(self, stdout: str) -> dict[str, bytes]:
        """What a finished command has left, by name; `stdout` is what it has printed."""

    def is_done(self, code: int, message: str) -> bool:
        """Whether the command has finished, or says that it had."""
        return code == 0

    def acknowledged(self) -> Any:
        """What the command has saved so far, in a form that `is_kept` compares."""
        return None

    def is_kept(self, before: Any, after: Any) -> bool:
        """Whether what was saved before is still there."""
        return True

    def wait_for_orphans(self) -> None:  # noqa: B027
        """Wait for processes that outlive the command; most have none."""

    def target_process(self, process_id: int, rng: Any) -> tuple[int, int]:
        """The process to kill, and the signal to do it with."""
        return process_id, signal.SIGKILL


class TrainJob(ChaosJob):
    """`train`, in a process or two. A supervisor's training process is ended by SIGSEGV, which changes no bit."""

    name = "train"
    supervised = True

    @property
    def run(self) -> Path:
        return self.place.output / "run"

    @property
    def arguments(self) -> list[object]:
        place, data = self.place, self.place.data
        inputs = ["--model", place.model, "--data", data / "train.jsonl", "--valid-data", data / "valid.jsonl"]
        steps = ["--adapter-path", self.run, "--iters", 16, "--batch-size", 2, "--save-every", 4, "--samples", 2]
        steps += ["--steps-per-eval", 6, "--steps-per-report", 4, "--dropout", 0.1, "--learning-rate", 1e-4]
        return ["train", *inputs, *steps, *([] if self.supervised else ["--no-supervise"])]

    def result(self, stdout: str) -> dict[str, bytes]:
        names = ("adapters.safetensors", "adapter_config.json", *(f"report/{name}" for name in REPORT_FILES))
        files = {name: (self.run / name).read_bytes() for name in names}
        evaluations = [line for line in _lines(self.run / "metrics.jsonl") if "eval_loss" in line]
        present = {name: b"" for name in ("README.md", "report.html", "training.json") if (self.run / name).is_file()}
        return {**files, **present, "evaluations": json.dumps(evaluations).encode()}

    def is_done(self, code: int, message: str) -> bool:
        return code == 0 or (code == 2 and "finished run" in message)

    def acknowledged(self) -> int:
        steps = (path.name for path in self.run.glob("checkpoints/[0-9]*"))
        return max(map(int, steps), default=0)

    def is_kept(self, before: int, after: int) -> bool:
        return after >= before

    def wait_for_orphans(self) -> None:
        deadline = time.monotonic() + 60
        while (process_id := self._trainer()) and time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(process_id, os.WNOHANG)
            time.sleep(0.05)

    def target_process(self, process_id: int, rng: Any) -> tuple[int, int]:
        trainer = self._trainer()
        if self.supervised and trainer and rng.random() < 0.5:
            return trainer, signal.SIGSEGV
        return process_id, signal.SIGKILL

    def _trainer(self) -> int | None:
        """The process that has the run's folder, if it is alive."""
        try:
            process_id = int((self.run / ".lock").read_text())
            os.kill(process_id, 0)
        except (OSError, ValueError):
            return None
        return process_id


REPORT_FILES = ("evaluations.jsonl", "samples.jsonl", "pairs.json")


class ScoreJob(ChaosJob):
    """`score`, whose file is completed by the next call."""

    name = "score"

    @property
    def file(self) -> Path:
        return self.place.output / "scores.jsonl"

    @property
    def arguments(self) -> list[object]:
        place = self.place
        inputs = ["--model", place.model, "--adapter-path", place.adapter, "--data", place.data / "scored.jsonl"]
        return ["score", *inputs, "--output", self.file, "--batch-size", SCORE_BATCH]

    def result(self, stdout: str) -> dict[str, bytes]:
        return {"scores": self.file.read_bytes()}

    def acknowledged(self) -> bytes:
        """The whole batches in the file."""
        lines = self.file.read_bytes().splitlines(keepends=True) if self.file.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        return b"".join(whole[: len(whole) // SCORE_BATCH * SCORE_BATCH])

    def is_kept(self, before: bytes, after: bytes) -> bool:
        return after.startswith(before)


class EvaluateJob(ChaosJob):
    """`evaluate`, which leaves nothing but its result."""

    name = "evaluate"

    @property
    def arguments(self) -> list[object]:
        place = self.place
        adapter = ["--model", place.model, "--adapter-path", place.adapter]
        return ["evaluate", *adapter, "--data", place.data / "scored.jsonl", "--batch-size", 4, "--json"]

    def result(self, stdout: str) -> dict[str, bytes]:
        return {"metrics": stdout.encode()}


class FuseJob(ChaosJob):
    """`fuse`, whose folder is there as a whole or not at all."""

    name = "fuse"

    @property
    def folder(self) -> Path:
        return self.place.output / "fused"

    @property
    def arguments(self) -> list[object]:
        place, pairs = self.place, self.place.data / "valid.jsonl"
        inputs = ["--model", place.model, "--adapter-path", place.adapter, "--calibrate", pairs]
        return ["fuse", *inputs, "--save-path", self.folder, "--bits", "8", "--force"]

    def result(self, stdout: str) -> dict[str, bytes]:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        named = {str(path.relative_to(self.folder)): path.read_bytes() for path in files}
        return {name: content for name, content in named.items() if name not in ("training.json", "README.md")}

    def is_done(self, code: int, message: str) -> bool:
        return code == 0 or (code == 2 and "exists already" in message)


class PushJob(ChaosJob):
    """`push` of the adapter, as one commit."""

    name = "push"
    reads_data = False

    @property
    def arguments(self) -> list[object]:
        return ["push", self.place.adapter, "--repo-id", REPO]

    def result(self, stdout: str) -> dict[str, bytes]:
        hub = self.place.hub
        return {name: hub.content(REPO, name) for name in sorted(hub.store.files("models", REPO))}

    def acknowledged(self) -> list[str]:
        """The files on the Hub."""
        store = self.place.hub.store
        return sorted(store.files("models", REPO)) if store.repo("models", REPO) else []

    def is_kept(self, before: list[str], after: list[str]) -> bool:
        return set(before) <= set(after)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


JOBS: tuple[type[ChaosJob], ...] = (TrainJob, ScoreJob, FuseJob, EvaluateJob, PushJob)
