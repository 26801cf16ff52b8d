"""Pushing that goes with a run: its checkpoints on the way, and itself at the end. No failure of it costs the run."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError
from mlx_dpo.export.push.hub_push import (
    CHECKPOINT_BRANCH,
    MessageCallback,
    PushResult,
    check_push_allowed,
    checkpoint_files,
    push_files,
    push_folder,
    qualified_repo_id,
)
from mlx_dpo.training.listener import Listener, RunPlan


def target_repository(config: TrainConfig) -> str:
    """Where a run is to go: --hub-model-id, or its folder's name under whoever is logged in (without the user)."""
    return config.hub_model_id or Path(config.adapter_path).resolve().name


def check_push_settings(config: TrainConfig) -> None:
    """Raise `UserError`, before anything is trained, where pushing can't work: nobody is logged in, or no such name."""
    if config.push_to_hub or config.push_checkpoints:
        check_push_allowed(config.hub_model_id if "/" in (config.hub_model_id or "") else None)


class CheckpointPusher(Listener):
    """Sends checkpoints as they are saved, beside the training; of those that wait meanwhile, only the newest."""

    def __init__(self, config: TrainConfig, on_message: MessageCallback) -> None:
        self.config, self.on_message = config, on_message
        self.jobs: Queue[tuple[int, Path] | None] = Queue()
        self.thread: Thread | None = None

    def on_run_start(self, plan: RunPlan) -> None:
        if self.thread is None:  # a run that is started again begins again
            self.thread = Thread(target=self._work, daemon=True)  # which a second Ctrl-C does not wait for
            self.thread.start()

    def on_checkpoint_saved(self, step: int, folder: Path) -> None:
        with suppress(Empty):
            self.jobs.get_nowait()
        self.jobs.put((step, folder))

    def on_run_end(self) -> None:
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
            self.on_message(f"The checkpoint of step {step:,} is on the Hub: {repo_id}, branch {CHECKPOINT_BRANCH}.")
        except (UserError, OSError) as error:  # the folder may be gone, cleared for a later one
            self.on_message(f"The checkpoint of step {step:,} did not get to the Hub: {error}")


def push_finished_run(config: TrainConfig, run: Path, on_message: MessageCallback) -> PushResult | None:
    """Push a finished run; None where that failed, and `say` has heard why and how to do it later."""
    name = target_repository(config)
    try:
        return push_folder(run, qualified_repo_id(name), private=config.hub_private_repo, on_message=on_message)
    except (UserError, OSError) as error:
        later = ["mlx-dpo", "push", str(run), "--repo-id", name, *([] if config.hub_private_repo else ["--public"])]
        on_message(
            f"The run is whole, in {run}, but did not get to the Hub: {error}\nPush it later: {shlex.join(later)}"
        )
        return None
