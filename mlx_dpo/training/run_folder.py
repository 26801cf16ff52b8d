"""The files of a run: the adapter at the top of its folder, and checkpoints with all that an exact resume needs.

Files are written to a temporary name, flushed to disk and renamed: at any instant a reader, or a crash, finds the old
one or the new one and never half of one.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import mlx.core as mx
from safetensors import SafetensorError

from mlx_dpo.adapters.adapter_folder import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, adapter_config_json
from mlx_dpo.adapters.reward_head import tensors_by_file
from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.config_files import CONFIG_FILE
from mlx_dpo.errors import UserError, Where
from mlx_dpo.training.checkpoint import (
    PROGRESS_FILE,
    TrainingState,
    read_progress,
    write_progress,
    write_training_state,
)
from mlx_dpo.utils.atomic_write import append_line, atomic_write, delete

BEST_FILE, LOCK_FILE = "best.json", ".lock"
CHECKPOINTS_FOLDER = "checkpoints"


class SaveError(Exception):
    """A file could not be written; what was there before is unchanged."""


class RunFolder:
    """A run's folder: an mlx-lm adapter folder with more in it.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        """Create the object; the folder need not exist.

        Args:
            path: the run's folder.
        """
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def require_new(self) -> None:
        """Check that no run is in the folder.

        Raises:
            UserError: there is one.
        """
        where = Where(str(self.path))
        if self.latest_checkpoint():  # of a finished run, since an unfinished one is resumed
            hint = "Choose another --adapter-path; or train further with --resume-anyway and more --epochs or --iters."
            raise UserError("this folder holds a finished run", where=where, hint=hint)
        if (self.path / ADAPTER_WEIGHTS_FILE).exists():
            hint = "Choose another --adapter-path."
            raise UserError("this folder holds an earlier run without checkpoints", where=where, hint=hint)

    def create(self) -> None:
        """Make the folder, and lock it.

        Raises:
            UserError: it can't be written, or another run is in it.
        """
        with self._writable():
            self._require_folders()
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        self.lock()

    def _require_folders(self) -> None:
        """Raise `UserError` if a part of the path is not a folder."""
        for path in (self.path, *self.path.parents):
            if path.is_symlink() and not path.exists():
                message = f"{path} is a link to {path.readlink()}, which does not exist"
            elif path.exists() and not path.is_dir():
                message = f"{path} is a file"
            else:
                continue
            hint = "Choose another --adapter-path."
            where = Where(str(self.path))
            raise UserError(f"the output folder can't be written: {message}", where=where, hint=hint)

    def lock(self) -> None:
        """Keep other runs out until `unlock`, or the end of the process.

        Raises:
            UserError: another run is in the folder.
        """
        if self._lock is not None or not self.path.is_dir():
            return
        path = self.path / LOCK_FILE
        with self._writable():
            file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            message = f"another run is being written here, by process {file.read().strip() or '?'}"
            hint = "Wait for it, or choose another --adapter-path."
            raise UserError(message, where=Where(str(self.path)), hint=hint) from None
        except OSError:
            pass  # a file system without locks
        if not path.exists() or os.fstat(file.fileno()).st_ino != path.stat().st_ino:
            self.lock()  # the run that had the lock has just ended, and deleted the file
            return
        self._lock = file
        with suppress(OSError):  # the process id is for display
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
        """Let other runs in."""
        if self._lock is not None:
            with suppress(OSError):
                (self.path / LOCK_FILE).unlink(missing_ok=True)
                self._lock.close()
            self._lock = None

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder atomically.

        Raises:
            SaveError: it can't be written.
        """
        with _save_errors(), atomic_write(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    def append_line(self, name: str, line: str) -> None:
        """Append a line to a file of the folder atomically.

        Args:
            name: the file's name.
            line: the line, without its end.

        Raises:
            SaveError: it can't be written.
        """
        with _save_errors():
            append_line(self.path / name, line)

    def save_adapter(self, tensors: Tensors, spec: AdapterSpec, model: str) -> None:
        """Write the adapter for mlx-lm to load, and the reward head, if there is one, beside it.

        Args:
            tensors: trainable tensors by name.
            spec: settings of the adapter.
            model: the model's name.

        Raises:
            SaveError: it can't be written.
        """
        with _save_errors():
            self.path.mkdir(parents=True, exist_ok=True)
            for name, content in tensors_by_file(tensors).items():
                with atomic_write(self.path / name) as partial, partial.open("wb") as file:
                    mx.save_safetensors(file, content, metadata={"format": "mlx"})
        self.write_text(ADAPTER_CONFIG_FILE, adapter_config_json(spec, model))

    def checkpoints(self) -> list[Path]:
        """Return the folders of complete checkpoints, oldest first."""
        folders = [path for path in self.path.glob(f"{CHECKPOINTS_FOLDER}/[0-9]*") if path.is_dir()]
        return sorted(folders, key=lambda path: int(path.name))

    def latest_checkpoint(self) -> Path | None:
        """Return the folder of the last complete checkpoint."""
        return next(reversed(self.checkpoints()), None)

    def require_latest_checkpoint(self) -> Path:
        """Return the folder of the last complete checkpoint.

        Raises:
            UserError: there is none.
        """
        latest = self.latest_checkpoint()
        if latest is None:
            raise UserError("there is no checkpoint here to resume from", where=Where(str(self.path)))
        return latest

    def unfinished_checkpoint(self) -> Path | None:
        """Return the last checkpoint; None if there is none or its run is finished.

        Raises:
            UserError: it is damaged.
        """
        latest = self.latest_checkpoint()
        return None if latest is None or read_progress(latest).finished else latest

    def save_checkpoint(
        self, state: TrainingState, tensors: Tensors, spec: AdapterSpec, model: str, config: str
    ) -> Path:
        """Write a checkpoint atomically.

        Args:
            state: state that it holds beside the adapter.
            tensors: trainable tensors by name.
            spec: settings of the adapter.
            model: the model's name.
            config: the run's config as YAML; with it a checkpoint alone is enough to resume.

        Returns:
            Its folder.

        Raises:
            SaveError: it can't be written.
        """
        final = self.checkpoint(state.progress.step)
        with _save_errors():
            final.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(final) as partial:
                folder = RunFolder(partial)
                folder.save_adapter(tensors, spec, model)
                folder.write_text(CONFIG_FILE, config)
                write_training_state(partial, state)
        if not (self.path / CONFIG_FILE).exists():  # somebody has deleted the run's folder
            self.write_text(CONFIG_FILE, config)
        return final

    def update_progress(self, state: TrainingState) -> None:
        """Rewrite the progress in the checkpoint of this step, after an evaluation or at the run's end.

        Raises:
            SaveError: it can't be written.
        """
        with _save_errors(), atomic_write(self.checkpoint(state.progress.step) / PROGRESS_FILE) as partial:
            write_progress(partial, state)

    def remove_checkpoint(self, step: int) -> None:
        """Remove the checkpoint of a step."""
        delete(self.checkpoint(step))

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.path / CHECKPOINTS_FOLDER / f"{step:07d}"

    def prune_checkpoints(self, keep: int) -> None:
        """Delete all but the last `keep` checkpoints and the best; none if `keep` is 0."""
        best = self.best_checkpoint()
        for folder in self.checkpoints()[: -keep or None] if keep else []:
            if folder != best:
                delete(folder)
        for unfinished in self.path.glob(f"{CHECKPOINTS_FOLDER}/.*.partial"):
            delete(unfinished)

    def mark_best(self, step: int, loss: float) -> None:
        """Record which checkpoint is the best on held-out examples.

        Args:
            step: the checkpoint's.
            loss: its held-out loss.

        Raises:
            SaveError: it can't be written.
        """
        folder = f"{CHECKPOINTS_FOLDER}/{step:07d}"
        self.write_text(BEST_FILE, json.dumps({"step": step, "loss": loss, "folder": folder}) + "\n")

    def best_checkpoint(self) -> Path | None:
        """Return the folder of the best checkpoint; None if none is marked."""
        try:
            record = json.loads((self.path / BEST_FILE).read_text(encoding="utf-8"))
            return self.path / str(record["folder"])
        except (OSError, ValueError, TypeError, KeyError):
            return None


@contextmanager
def _save_errors() -> Iterator[None]:
    """Turn what the system, mlx or safetensors raise for a file that can't be written into one exception."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SaveError(getattr(error, "strerror", None) or str(error)) from error
