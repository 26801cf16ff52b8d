"""Write a run's checkpoints, delete old ones, and handle a full disk."""

from __future__ import annotations

import filecmp
import shutil
from contextlib import suppress
from pathlib import Path

from mlx_dpo.adapters.adapter_folder import ADAPTER_WEIGHTS_FILE, REWARD_HEAD_FILE
from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.adapters.value_head import VALUE_HEAD_FILE
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import dump_yaml
from mlx_dpo.errors import UserError, Where
from mlx_dpo.training.checkpoint import TrainingState
from mlx_dpo.training.events import CheckpointSaved, Note
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.run_folder import RunFolder, SaveError
from mlx_dpo.utils.formatting import format_bytes


class CheckpointSaver:
    """Writes a run's checkpoints and adapter.

    Attributes:
        saved_step: the step whose checkpoint is on disk; -1 if there is none.
        is_temporary: whether that checkpoint is deleted after the evaluation.
        has_failed: whether the last checkpoint could not be written and will be tried again.
    """

    def __init__(
        self, folder: RunFolder, config: TrainConfig, spec: AdapterSpec, listener: Listener, *, is_main: bool = True
    ) -> None:
        """Make a saver.

        Args:
            folder: the run's folder.
            config: the run's settings, resolved.
            spec: settings of the adapter.
            listener: receives notes and `CheckpointSaved`.
            is_main: whether this process is the one that writes.
        """
        self.folder, self.config, self.spec, self.listener, self.is_main = folder, config, spec, listener, is_main
        self.saved_step, self.has_failed, self.is_temporary = -1, False, False

    def check_room(self, state: TrainingState, tensors: Tensors, steps: int) -> None:
        """Compare the free disk space with the size of the checkpoints, before training starts.

        Args:
            state: state that a checkpoint holds beside the adapter.
            tensors: trainable tensors by name.
            steps: optimizer steps of the whole run.

        Raises:
            UserError: there is not enough disk space for a single checkpoint.
        """
        if not self.is_main:
            return
        adapter = sum(tensor.nbytes for tensor in tensors.values())
        checkpoint = adapter + state.num_bytes
        free = shutil.disk_usage(self.folder.path).free
        where = Where(str(self.folder.path))
        if free < checkpoint + adapter:  # the adapter is also at the top of the folder
            message = (
                f"not enough disk space for a checkpoint: it takes {format_bytes(checkpoint + adapter)}, but only "
                f"{format_bytes(free)} are free"
            )
            hint = "Free disk space, or choose an --adapter-path on another disk."
            raise UserError(message, where=where, hint=hint)
        num_saves = self._num_saves(state.progress.step, steps)
        kept = min(self.config.keep_checkpoints or num_saves, num_saves) + self.config.keep_best
        kept += num_saves > kept  # one more is there until the oldest is deleted
        missing = kept - len(self.folder.checkpoints())
        if missing > 1 and free < missing * checkpoint + adapter:
            needed = format_bytes(missing * checkpoint + adapter)
            self.listener.handle(
                Note(
                    f"checkpoints will take {needed}, but only {format_bytes(free)} are free at {where}. "
                    "Free disk space, or keep fewer with --keep-checkpoints."
                )
            )

    def _num_saves(self, step: int, steps: int) -> int:
        """Checkpoints that are still to be written after `step`, the last one included."""
        intervals = [every for every in (self.config.save_every, self.config.steps_per_eval) if every]
        return 1 + sum(any(later % every == 0 for every in intervals) for later in range(step + 1, steps))

    def save(
        self, state: TrainingState, tensors: Tensors, *, is_last: bool = False, is_temporary: bool = False
    ) -> bool:
        """Write a checkpoint and the run's adapter, unless those of this step exist already.

        A failure is noted once; the trainer tries again at the next report.

        Args:
            state: state that the checkpoint holds beside the adapter.
            tensors: trainable tensors by name.
            is_last: whether there is no later attempt.
            is_temporary: whether it is deleted after an evaluation; see `remove_temporary`.

        Returns:
            Whether they are on disk.

        Raises:
            UserError: the last attempt failed.
        """
        step, config = state.progress.step, self.config
        if self.saved_step == step:
            if self.is_temporary and not is_temporary:
                self._keep(step)
            return True
        if state.progress.consecutive_skips or not self.is_main:
            return False  # after a skipped step the tensors are not to be trusted
        try:
            self.folder.save_checkpoint(state, tensors, self.spec, config.model, dump_yaml(config))
            self.folder.save_adapter(tensors, self.spec, config.model)
        except SaveError as error:
            self._report_failure(step, tensors, str(error), is_last)
            return False
        self.saved_step, self.has_failed, self.is_temporary = step, False, is_temporary
        if not is_temporary:
            self._keep(step)
        return True

    def update_adapter(self, checkpoint: Path, tensors: Tensors) -> None:
        """Replace the adapter in the run's folder by that of the checkpoint that the run resumes from, if they differ.

        A process that ended between the two writes of `save` has left the adapter of an earlier step there.

        Args:
            checkpoint: the checkpoint's folder.
            tensors: trainable tensors by name, as in the checkpoint.
        """
        names = [
            name for name in (ADAPTER_WEIGHTS_FILE, REWARD_HEAD_FILE, VALUE_HEAD_FILE) if (checkpoint / name).is_file()
        ]
        if not any(filecmp.cmpfiles(self.folder.path, checkpoint, names, shallow=False)[1:]):  # mismatches, missing
            return
        try:
            self.folder.save_adapter(tensors, self.spec, self.config.model)
        except SaveError as error:
            step, self.saved_step = self.saved_step, -1  # to be written again, as a whole
            self._report_failure(step, tensors, str(error), is_last=False)

    def _keep(self, step: int) -> None:
        """Make the checkpoint of this step permanent, delete old ones, and report it."""
        self.is_temporary = False
        self.folder.prune_checkpoints(self.config.keep_checkpoints)
        self.listener.handle(CheckpointSaved(step, self.folder.checkpoint(step)))

    def remove_temporary(self) -> None:
        """Remove the last checkpoint if it is temporary."""
        if self.is_temporary:
            self.folder.remove_checkpoint(self.saved_step)
            self.saved_step, self.is_temporary = -1, False

    def update_progress(self, state: TrainingState, tensors: Tensors, *, is_last: bool = False) -> None:
        """Record in the checkpoint of this step that it was evaluated, or that the run is finished.

        Args:
            state: as in `save`.
            tensors: as in `save`; written if there is no checkpoint of this step.
            is_last: whether there is no later attempt.

        Raises:
            UserError: the last attempt failed.
        """
        if self.saved_step == state.progress.step:
            try:
                return self.folder.update_progress(state)
            except SaveError:
                self.saved_step = -1  # to be written again, as a whole
        if is_last:
            self.save(state, tensors, is_last=True)
        return None

    def save_best(self, state: TrainingState, tensors: Tensors, loss: float) -> None:
        """Write a checkpoint and mark it as the best on held-out examples.

        Args:
            state: state that the checkpoint holds beside the adapter.
            tensors: trainable tensors by name.
            loss: the held-out loss.
        """
        if self.save(state, tensors):
            with suppress(SaveError):
                self.folder.mark_best(state.progress.step, loss)

    def _report_failure(self, step: int, tensors: Tensors, reason: str, is_last: bool) -> None:
        latest = self.folder.latest_checkpoint()
        kept = f"the last checkpoint is {latest}" if latest else "there is no checkpoint yet"
        if is_last:
            with suppress(SaveError):  # it is small beside the optimizer's state
                self.folder.save_adapter(tensors, self.spec, self.config.model)
                kept += "; the adapter of this step is saved"
            hint = "Free disk space, and resume with --resume." if latest else "Free disk space, and start again."
            message = f"step {step} could not be saved: {reason}; {kept}"
            raise UserError(message, where=Where(str(self.folder.path)), hint=hint)
        if not self.has_failed:
            self.listener.handle(
                Note(f"step {step} could not be saved: {reason}; {kept}. It is tried again with every report.")
            )
        self.has_failed = True
