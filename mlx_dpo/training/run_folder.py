"""The files of a run: adapters at its top, and checkpoints that hold all that going on exactly needs.

What is written is written aside, flushed to the disk and renamed: a reader, or a crash, at any instant finds the old or
the new and never half of one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import mlx.core as mx
from safetensors import SafetensorError

from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.errors import UserError, Where
from mlx_dpo.training.checkpoint import TrainingState, read_progress, write_training_state

ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE = "adapters.safetensors", "adapter_config.json"
BEST_FILE, CONFIG_FILE, LOCK_FILE = "best.json", "config.yaml", ".lock"


class SaveError(Exception):
    """A file could not be written; what was there before is as it was."""


class RunFolder:
    """A run's folder: a valid mlx-lm adapter folder with more beside it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def require_new(self) -> None:
        """Raises `UserError` where the folder holds a run already."""
        where = Where(str(self.path))
        if self.latest_checkpoint():  # what is unfinished is gone on with
            hint = (
                "Choose another --adapter-path; or train it further, by --resume-anyway and more --epochs or --iters."
            )
            raise UserError("this folder holds a finished run", where=where, hint=hint)
        if (self.path / ADAPTER_WEIGHTS_FILE).exists():
            hint = "Choose another --adapter-path."
            raise UserError("this folder holds an earlier run without checkpoints", where=where, hint=hint)

    def create(self) -> None:
        """Make the folder, and keep other runs out of it. Raises `UserError` where it can't be written."""
        with self._writable():
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        self.lock()

    def lock(self) -> None:
        """Keep other runs out until `unlock`, or the end of the process. Raises `UserError` where one is in it."""
        if self._lock is not None or not self.path.is_dir():
            return
        with self._writable():
            file = (self.path / LOCK_FILE).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            message = f"another run is being written here, by process {file.read().strip() or '?'}"
            hint = "Wait for it, or choose another --adapter-path."
            raise UserError(message, where=Where(str(self.path)), hint=hint) from None
        except OSError:
            pass  # a file system without locks
        if (
            not (self.path / LOCK_FILE).exists()
            or os.fstat(file.fileno()).st_ino != (self.path / LOCK_FILE).stat().st_ino
        ):
            self.lock()  # who was in it has just left, and taken the file along
            return
        self._lock = file
        with suppress(OSError):  # it is for people
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason, where = error.strerror or str(error), Where(str(self.path))
            raise UserError(f"the output folder can't be written: {reason}", where=where) from None

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            with suppress(OSError):
                (self.path / LOCK_FILE).unlink(missing_ok=True)
                self._lock.close()
            self._lock = None

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder whole or not at all. Raises `SaveFailed`."""
        with _said(), _aside(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    def append_line(self, name: str, line: str) -> None:
        """Add a line to a file of the folder, whole or not at all. Raises `SaveFailed`."""
        with _said():
            append_line(self.path / name, line)

    def save_adapter(self, tensors: Tensors, spec: AdapterSpec, model: str) -> None:
        """The adapter as mlx-lm reads it. Raises `SaveFailed`."""
        with _said():
            self.path.mkdir(parents=True, exist_ok=True)
            with _aside(self.path / ADAPTER_WEIGHTS_FILE) as partial:
                mx.save_safetensors(str(partial), tensors, metadata={"format": "mlx"})
        self.write_text(ADAPTER_CONFIG_FILE, adapter_config_json(spec, model))

    def checkpoints(self) -> list[Path]:
        """The folders of whole checkpoints, oldest first."""
        found = [p for p in self.path.glob("checkpoints/[0-9]*") if p.is_dir()]
        return sorted(found, key=lambda p: int(p.name))

    def latest_checkpoint(self) -> Path | None:
        """The folder of the last whole checkpoint."""
        return next(reversed(self.checkpoints()), None)

    def require_latest_checkpoint(self) -> Path:
        """The folder of the last whole checkpoint. Raises `UserError` where there is none."""
        latest = self.latest_checkpoint()
        if latest is None:
            raise UserError("there is no checkpoint here to go on from", where=Where(str(self.path)))
        return latest

    def unfinished_checkpoint(self) -> Path | None:
        """The last checkpoint, where the run has not come to its end. Raises `UserError` where it is damaged."""
        latest = self.latest_checkpoint()
        return None if latest is None or read_progress(latest).finished else latest

    def save_checkpoint(
        self, state: TrainingState, tensors: Tensors, spec: AdapterSpec, model: str, config: str
    ) -> Path:
        """Write a checkpoint, whole or not at all. Raises `SaveFailed`.

        Args:
            config: the run's config as YAML; each checkpoint has it, so that it is all that going on needs.
        """
        final = self.path / "checkpoints" / f"{state.progress.step:07d}"
        partial = final.with_name(f".{final.name}.partial")
        with _said():
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                inner = RunFolder(partial)
                inner.save_adapter(tensors, spec, model)
                inner.write_text(CONFIG_FILE, config)
                write_training_state(partial, state)
                for file in partial.iterdir():
                    fsync_path(file)
                fsync_path(partial)
                _move_folder(partial, final)
                fsync_path(final.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        if not (self.path / CONFIG_FILE).exists():  # the folder had disappeared
            self.write_text(CONFIG_FILE, config)
        return final

    def prune_checkpoints(self, keep: int) -> None:
        """Remove all but the last `keep` checkpoints (all stay where it is 0) and the best."""
        best = self.best_checkpoint()
        for folder in self.checkpoints()[: -keep or None] if keep else []:
            if folder != best:
                shutil.rmtree(folder, ignore_errors=True)
        for left_over in self.path.glob("checkpoints/.*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)

    def mark_best(self, step: int, loss: float) -> None:
        """Say which checkpoint is the best on held-out rows. Raises `SaveFailed`."""
        folder = f"checkpoints/{step:07d}"
        self.write_text(BEST_FILE, json.dumps({"step": step, "loss": loss, "folder": folder}) + "\n")

    def best_checkpoint(self) -> Path | None:
        """The folder of the best checkpoint, where one is marked."""
        try:
            told = json.loads((self.path / BEST_FILE).read_text(encoding="utf-8"))
            return self.path / str(told["folder"])
        except (OSError, ValueError, TypeError, KeyError):
            return None


def adapter_config_json(spec: AdapterSpec, model: str) -> str:
    """adapter_config.json: what mlx-lm reads, and the model the adapter belongs to."""
    return json.dumps({"model": model, **spec.to_json()}, indent=4) + "\n"


def append_line(file: Path, line: str) -> None:
    """Add a line to a file; where that fails half-way, the file is as it was. Raises `OSError`."""
    with file.open("ab") as f:
        before = f.tell()
        try:
            f.write(line.encode() + b"\n")
            f.flush()
        except OSError:
            with file.open("r+b") as again:
                again.truncate(before)
            raise


def fsync_path(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _said() -> Iterator[None]:
    """What the system, mlx or safetensors says of a file that can't be written, as one exception."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SaveError(getattr(error, "strerror", None) or str(error)) from error


@contextmanager
def _aside(final: Path) -> Iterator[Path]:
    """A file to write, which is flushed and put in `final`'s place at the end, or removed where that is not reached."""
    partial = final.with_name(f".partial.{final.name}")
    try:
        yield partial
        fsync_path(partial)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def _move_folder(partial: Path, final: Path) -> None:
    """Put a folder in another's place, if there is one."""
    if not final.exists():
        partial.rename(final)
        return
    old = final.with_name(f".{final.name}.old.partial")
    shutil.rmtree(old, ignore_errors=True)
    final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)
