"""Pushing during and after a run: its checkpoints, and the finished run. A failed push never fails the run."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.export.push.hub_push import (
    CHECKPOINT_BRANCH,
    PushResult,
    check_push_allowed,
    checkpoint_files,
    push_files,
    push_folder,
    qualified_repo_id,
)
from mlx_dpo.training.events import RunPlan
from mlx_dpo.training.listener import Listener


def target_repository(config: TrainConfig) -> str:
    """The repository of a run: --hub-model-id, or its folder's name; possibly without the user name."""
    return config.hub_model_id or Path(config.adapter_path).resolve().name


def check_push_settings(config: TrainConfig) -> None:
    """Check before training whether the run can be pushed.

    Raises:
        UserError: nobody is logged in, or the repository's name is not valid.
    """
    if config.push_to_hub or config.push_checkpoints:
        check_push_allowed(config.hub_model_id if "/" in (config.hub_model_id or "") else None)


class CheckpointPusher(Listener):
    """Uploads checkpoints in a thread while training continues; skips those that a newer one replaces."""

    def __init__(self, config: TrainConfig, on_message: Callable[[str], None]) -> None:
        """Prepare for a run.

        Args:
            config: the run's settings.
            on_message: called from the thread with a sentence about each checkpoint.
        """
        self.config, self.on_message = config, on_message
        self.jobs: Queue[tuple[int, Path] | None] = Queue()
        self.thread: Thread | None = None

    def on_run_start(self, plan: RunPlan) -> None:
        """Start the thread; a run that is restarted keeps it."""
        if self.thread is None:
            self.thread = Thread(target=self._work, daemon=True)  # a second Ctrl-C does not wait for it
            self.thread.start()

    def on_checkpoint_saved(self, step: int, folder: Path) -> None:
        """Enqueue a checkpoint, instead of one that waits."""
        with suppress(Empty):
            self.jobs.get_nowait()
        self.jobs.put((step, folder))

    def on_run_end(self) -> None:
        """Wait until the last checkpoint is uploaded."""
        if self.thread is not None:
            self.jobs.put(None)
            self.thread.join()
            self.thread = None

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            self._push(*job)

    def _push(self, step: int, folder: Path) -> None:
        try:
            repo_id = qualified_repo_id(target_repository(self.config))
            private = self.config.hub_private_repo
            message = f"Step {step}"
            push_files(checkpoint_files(folder), repo_id, private=private, branch=CHECKPOINT_BRANCH, message=message)
            self.on_message(f"Pushed the checkpoint of step {step:,} to {repo_id}, branch {CHECKPOINT_BRANCH}.")
        except (UserError, OSError) as error:  # the folder may have been deleted for a later checkpoint
            self.on_message(f"The checkpoint of step {step:,} could not be pushed to the Hub: {error}")


def push_finished_run(config: TrainConfig, run: Path, on_message: Callable[[str], None]) -> PushResult | None:
    """Push a finished run.

    Args:
        config: the run's settings.
        run: its folder.
        on_message: called with warnings; if the push fails, with the reason and the command for a later attempt.

    Returns:
        The upload, or None if it failed.
    """
    name = target_repository(config)
    try:
        return push_folder(run, qualified_repo_id(name), private=config.hub_private_repo, on_message=on_message)
    except (UserError, OSError) as error:
        later = ["mlx-dpo", "push", str(run), "--repo-id", name, *([] if config.hub_private_repo else ["--public"])]
        on_message(
            f"The run is complete, in {run}, but could not be pushed to the Hub: {error}\n"
            f"Push it later: {shlex.join(later)}"
        )
        return None
