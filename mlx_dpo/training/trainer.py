"""The training loop: batches in, optimizer steps out, with everything in between told to a listener."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.optimizers import clip_grad_norm

from mlx_dpo.adapters.attach import trainable
from mlx_dpo.config import TrainConfig, dump_yaml
from mlx_dpo.data.micro_batches import Epochs
from mlx_dpo.distributed.communicator import ALONE, Arrays, Group
from mlx_dpo.errors import Diverged, Interrupted, UserError, Where
from mlx_dpo.evaluation.eval_snapshot import HeldOut
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN, PairSets
from mlx_dpo.evaluation.measuring import Measured, evaluate_examples
from mlx_dpo.evaluation.metrics import mean_metrics
from mlx_dpo.evaluation.scored_batch import Batch, batches_of
from mlx_dpo.forward.memory_model import Budget
from mlx_dpo.forward.policy import Policy
from mlx_dpo.objectives import Loss
from mlx_dpo.reference.reference_policy import SameNetwork
from mlx_dpo.training.checkpoint import ExactState, Progress
from mlx_dpo.training.gradients import Gradients
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.non_finite import NOT_FINITE, not_finite
from mlx_dpo.training.optimizer import learning_rate, make_optimizer
from mlx_dpo.training.run_folder import RunFolder, SaveFailed

MIXUP = 0.6  # of --reference-mixup, TR-DPO's
MOST_IN_A_ROW = 10  # steps without finite numbers
NAMED = 4  # rows that a note names


@dataclass
class Stopwatch:
    """Time, work and bytes sent of the steps since the last report; evaluations and saves don't count."""

    seconds: float = 0.0
    pairs: int = 0
    tokens: int = 0
    steps: int = 0
    sent: int = 0


class Trainer:
    """A run in motion: `run()` does all its steps.

    Attributes:
        steps: optimizer steps in all.
        progress: where it stands.
        stop: set it to end the run after the step at hand.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        budget: Budget,
        loss: Loss,
        sets: PairSets,
        folder: RunFolder,
        listener: Listener,
        stop: threading.Event,
        group: Group = ALONE,
    ) -> None:
        self.config, self.policy, self.budget, self.loss = config, policy, budget, loss
        self.sets, self.train_set, self.held_out = sets, sets[TRAIN], sets.get(HELD_OUT)
        self.folder, self.listener, self.stop, self.group = folder, listener, stop, group
        self.model = policy.model
        self.gradients = Gradients(policy, budget, loss, self.train_set.reference, group, config.seed)
        self.optimizer = make_optimizer(config)
        self.optimizer.init(self.model.trainable_parameters())
        self.epochs = Epochs(self.train_set.indices, config.batch_size, config.seed)
        self.steps = config.iters or max(1, math.ceil(config.epochs * self.epochs.steps))
        self.progress = Progress()
        self._watch = Stopwatch()
        self._peak = 0.0
        self._saved_at = -1
        self._could_not_save = False

    @property
    def moving(self) -> SameNetwork | None:
        """The reference, where it moves."""
        policy = self.train_set.reference.policy
        return policy if self.config.reference_sync_steps and isinstance(policy, SameNetwork) else None

    def restore(self, exact: ExactState, made_of: dict[str, str]) -> None:
        """Stand where a checkpoint was written; the adapter's tensors are put back by the caller.

        Raises `UserError` where nothing is left to do.
        """
        if exact.progress.step >= self.steps or (exact.progress.finished and self.config.patience):
            hint = "Give more --epochs or --iters, and --resume-anyway, to train further."
            where = Where(str(self.folder.path))
            raise UserError(f"this run has done all its {exact.progress.step} steps", where=where, hint=hint)
        self.progress, self.optimizer.state = exact.progress, exact.optimizer
        self.progress.made_of, self.progress.finished = made_of, False
        self.optimizer.init(self.model.trainable_parameters())
        if self.moving and exact.moving:
            self.moving.tensors = exact.moving
        self._saved_at = exact.progress.step

    def exact_state(self) -> ExactState:
        """All that a checkpoint must hold beside the adapter."""
        tables = {name: one.reference.table for name, one in self.sets.items()}
        moving = self.moving.tensors if self.moving else {}
        return ExactState(self.progress, self.optimizer.state, tables, moving)

    def run(self) -> dict[str, float]:
        """Train to the last step. Returns the held-out metrics after it (empty without held-out pairs).

        Raises:
            Interrupted: `stop` was set; the step was finished and saved.
            UserError: something of the user's is wrong; what was done is saved.
            Diverged: the numbers are finite no more; what was saved before it stays.
        """
        after: dict[str, float] = {}
        if self.progress.step == 0:
            self.progress.before = self._evaluate()
        order = (self.epochs.batch(step) for step in range(self.progress.step, self.steps))
        self.model.train()
        try:
            for batch in batches_of(self.train_set.pairs, order, self.budget, self.loss, self.group):
                self.step(batch)
                after = self._after_step() or after
                if self._enough():
                    after = after or self._evaluate()
                    break
        except Diverged:
            raise
        except UserError:
            if self.progress.step:
                self._save()
            raise
        finally:
            self.model.eval()
        if self.progress.in_a_row:
            raise self._diverged()
        self.progress.finished = True
        self._saved_at = -1  # that it is finished is to be in its checkpoint
        self._save(last=True)
        return after

    def _enough(self) -> bool:
        """Whether evaluations have stopped improving."""
        patience = self.config.patience
        if not patience or self.progress.stale < patience:
            return False
        self.listener.note(f"stopped early: the last {patience} evaluations did not lower the held-out loss.")
        return True

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        began, sent = time.perf_counter(), self.group.sent
        rate, running = learning_rate(self.config, self.progress.step, self.steps), self.progress.running
        gradients, rows, self.progress.running = self.gradients.of(batch, self.progress.step, running)
        told = self._told_all(batch, rows)
        metrics = mean_metrics([told["metrics"]])
        gradients = self.group.sum(gradients)
        norm = self._update(gradients, rate) if np.isfinite(metrics["loss"]) else float("nan")
        self.progress.step += 1
        if np.isfinite(norm):
            self.progress.in_a_row = 0
            self.progress.pending += told["metrics"].tolist()
            self.progress.grad_norms.append(norm)
        else:
            self.progress.running = running
            self._skipped(told["indices"], told["metrics"], metrics["loss"])
        self._move_reference()
        self._watch.seconds += time.perf_counter() - began
        self._watch.pairs += batch.size
        self._watch.steps += 1
        self._watch.tokens += int(told["tokens"].sum())
        self._watch.sent += self.group.sent - sent
        self._peak = float(told["peak"].max())
        spent = {"peak_memory_gb": self._peak, "reference_seconds": self.train_set.reference.seconds}
        self.listener.step(self.progress.step, {**metrics, **spent})

    def _told_all(self, batch: Batch, rows: np.ndarray) -> Arrays:
        """What every rank is to know of the others' part of a step: metrics and references, work and memory."""
        indices, reference, marks = batch.in_order, self.train_set.reference, self.train_set.pairs.marks
        known = {"reference": reference.table[indices], "marks": marks[indices]}
        of_examples = {"indices": indices, "metrics": rows, **known}
        work = {"tokens": [sum(micro.tokens for micro in batch.micros)], "peak": [mx.get_peak_memory() / 1e9]}
        told, _ = self.group.pooled(of_examples | {name: np.array(value) for name, value in work.items()})
        reference.learn(told["indices"], told["reference"])
        marks[told["indices"]] = told["marks"]
        return told

    def _move_reference(self) -> None:
        """Where it is time to; what was known of the reference holds no more."""
        if self.moving and self.progress.step % self.config.reference_sync_steps == 0:
            self.moving.move(trainable(self.model), self.config.reference_mixup or MIXUP)
            for one in self.sets.values():
                one.reference.forget()

    def _update(self, gradients: Any, rate: float) -> float:
        """One optimizer step; returns the gradient's norm before clipping."""
        limit = self.config.max_grad_norm or float("inf")
        gradients, norm = clip_grad_norm(gradients, limit)
        if np.isfinite(norm.item()):  # else the tensors stay as they are, and the run ends with a sentence
            self.optimizer.learning_rate = rate
            self.optimizer.update(self.model, gradients)
            mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return norm.item()

    def _skipped(self, indices: np.ndarray, rows: np.ndarray, loss: float) -> None:
        """Count, name and write down a step that changed nothing. Raises `Diverged` after `MOST_IN_A_ROW`."""
        progress = self.progress
        progress.skipped += 1
        progress.in_a_row += 1
        at_fault = not_finite(indices, rows, self.train_set.pairs)
        places = ", ".join(str(one.where) for one in at_fault[:NAMED]) + (", ..." if len(at_fault) > NAMED else "")
        what = "loss" if not np.isfinite(loss) else "gradient"
        self.listener.note(
            f"step {progress.step}: the {what} is not a finite number, so it was skipped. It saw {places}; "
            f"their tokens are in {self.folder.path / NOT_FINITE}."
        )
        with suppress(SaveFailed):  # of two faults at once the first is told
            for one in at_fault if self.group.leads else []:
                self.folder.append_line(NOT_FINITE, one.to_json(progress.step))
        if progress.in_a_row == MOST_IN_A_ROW:
            raise self._diverged()

    def _diverged(self) -> Diverged:
        latest, count = self.folder.latest(), self.progress.in_a_row
        kept = f"what was trained before is in {latest}" if latest else "nothing was saved before"
        return Diverged(
            f"the last {count} steps had a loss or a gradient that is not a finite number; {kept}",
            where=Where(str(self.folder.path)),
            hint="Lower --learning-rate first, then --scale; a 16-bit model may need --max-grad-norm 0.1.",
        )

    def _after_step(self) -> dict[str, float] | None:
        """Report, evaluate and save where it is time to; held-out metrics if they were measured."""
        step, last = self.progress.step, self.progress.step == self.steps
        config = self.config
        report_due = step % config.steps_per_report == 0 or last
        if report_due:
            self._report()
        measured = None
        if last or (config.steps_per_eval and step % config.steps_per_eval == 0):
            measured = self._evaluate()
        if not last and self._asked_to_stop():
            self._save(last=True)
            raise Interrupted(step, str(self.folder.latest() or self.folder.path))  # other ranks have no checkpoints
        if (config.save_every and step % config.save_every == 0) or (self._could_not_save and report_due):
            self._save()
        return measured

    def _asked_to_stop(self) -> bool:
        """Whether any rank is."""
        sent = self.group.sent
        asked = any(self.group.told(self.stop.is_set()))
        self._watch.sent += self.group.sent - sent
        return asked

    def _report(self) -> None:
        if not self.progress.pending:
            return  # every step was skipped
        seconds = max(self._watch.seconds, 1e-9)
        metrics = {
            **self._place(),
            **mean_metrics([np.array(self.progress.pending)]),
            "grad_norm": float(np.mean(self.progress.grad_norms)),
            "learning_rate": learning_rate(self.config, self.progress.step - 1, self.steps),
            "pairs_per_second": self._watch.pairs / seconds,
            "tokens_per_second": self._watch.tokens / seconds,
            "peak_memory_gb": self._peak,
            **(
                {"bytes_sent": self._watch.sent / max(1, self._watch.steps)}
                if self.group.size > 1 and self.group.split
                else {}
            ),
            **({"skipped_steps": self.progress.skipped} if self.progress.skipped else {}),
        }
        self.progress.pending, self.progress.grad_norms, self._watch = [], [], Stopwatch()
        self.listener.report(metrics)

    def _place(self) -> dict[str, float]:
        return {"step": self.progress.step, "epoch": self.progress.step / self.epochs.steps}

    def _evaluate(self) -> dict[str, float]:
        if self.held_out is None:
            return {}
        count, measured = len(self.held_out.indices), list[Measured]()
        metrics = evaluate_examples(
            self.budget,
            self.held_out.pairs,
            self.held_out.indices,
            self.held_out.reference,
            self.loss,
            batch_size=self.config.batch_size,
            running=self.progress.running,
            progress=lambda done: self.listener.evaluating(done, count),
            each=measured.append,
            group=self.group,
        )
        self.listener.evaluation({**self._place(), **{f"eval_{k}": v for k, v in metrics.items()}})
        self._note_best(metrics["loss"])
        self.listener.held_out(HeldOut(self.progress.step, measured, self.held_out, self.policy, self.budget))
        return metrics

    def _note_best(self, loss: float) -> None:
        """Count evaluations since the best one, and keep that."""
        progress = self.progress
        if progress.best_loss is not None and not loss < progress.best_loss:
            progress.stale += 1
            return
        progress.best_loss, progress.stale = loss, 0
        if self.config.keep_best and progress.step and self._save():
            with suppress(SaveFailed):
                self.folder.mark_best(progress.step, loss)

    def _save(self, last: bool = False) -> bool:
        """Write a checkpoint and the run's adapter, unless this step's are there already.

        Where that can't be done, it is said, and tried again with the next report; `last` says that there is none.

        Returns: whether it is written. Raises `UserError` where it is the last chance.
        """
        step = self.progress.step
        if self._saved_at == step:
            return True
        if self.progress.in_a_row or not self.group.leads:
            return False  # who knows what the tensors are worth
        tensors, spec, config = trainable(self.model), self.policy.spec, self.config
        try:
            path = self.folder.save_checkpoint(self.exact_state(), tensors, spec, config.model, dump_yaml(config))
            self.folder.save_adapter(tensors, spec, config.model)
        except SaveFailed as error:
            self._say_not_saved(str(error), last)
            return False
        self._saved_at, self._could_not_save = step, False
        self.folder.prune(config.keep_checkpoints)
        self.listener.saved(step, path)
        return True

    def _say_not_saved(self, reason: str, last: bool) -> None:
        latest = self.folder.latest()
        kept = f"the last checkpoint is {latest}" if latest else "there is no checkpoint yet"
        if last:
            hint = "Make room, and go on with --resume." if latest else "Make room, and start again."
            message = f"step {self.progress.step} could not be saved: {reason}; {kept}"
            raise UserError(message, where=Where(str(self.folder.path)), hint=hint)
        if not self._could_not_save:
            step = self.progress.step
            self.listener.note(
                f"step {step} could not be saved: {reason}; {kept}. It is tried again with every report."
            )
        self._could_not_save = True
