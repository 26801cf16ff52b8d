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

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.config import TrainConfig, dump_yaml
from mlx_dpo.data.micro_batches import ShuffledEpochs
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Arrays, Communicator
from mlx_dpo.errors import Diverged, Interrupted, UserError, Where
from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN, ExampleSets
from mlx_dpo.evaluation.measuring import ExampleMeasurement, evaluate_examples
from mlx_dpo.evaluation.metrics import mean_metrics
from mlx_dpo.evaluation.scored_batch import OptimizerBatch, optimizer_batches
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import Policy
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.reference.reference_policy import SharedNetworkReference
from mlx_dpo.training.checkpoint import TrainingProgress, TrainingState
from mlx_dpo.training.gradients import GradientComputer
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.non_finite import NON_FINITE_FILE, find_non_finite
from mlx_dpo.training.optimizer import learning_rate_at, make_optimizer
from mlx_dpo.training.run_folder import RunFolder, SaveError

DEFAULT_REFERENCE_MIXUP = 0.6  # of --reference-mixup, TR-DPO's
MAX_CONSECUTIVE_SKIPS = 10  # steps without finite numbers
MAX_ROWS_NAMED = 4  # rows that a note names


@dataclass
class ThroughputMeter:
    """Time, work and bytes sent of the steps since the last report; evaluations and saves don't count."""

    seconds: float = 0.0
    pairs: int = 0
    tokens: int = 0
    steps: int = 0
    bytes_sent: int = 0


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
        budget: MemoryModel,
        loss: WeightedLoss,
        sets: ExampleSets,
        folder: RunFolder,
        listener: Listener,
        stop: threading.Event,
        communicator: Communicator = SINGLE_PROCESS,
    ) -> None:
        self.config, self.policy, self.budget, self.loss = config, policy, budget, loss
        self.example_sets, self.train_set, self.held_out_set = sets, sets[TRAIN], sets.get(HELD_OUT)
        self.folder, self.listener, self.stop, self.communicator = folder, listener, stop, communicator
        self.model = policy.model
        self.gradients = GradientComputer(policy, budget, loss, self.train_set.reference, communicator, config.seed)
        self.optimizer = make_optimizer(config)
        self.optimizer.init(self.model.trainable_parameters())
        self.epochs = ShuffledEpochs(self.train_set.indices, config.batch_size, config.seed)
        self.steps = config.iters or max(1, math.ceil(config.epochs * self.epochs.steps_per_epoch))
        self.progress = TrainingProgress()
        self._throughput = ThroughputMeter()
        self._peak_memory_gb = 0.0
        self._saved_step = -1
        self._save_failed = False

    @property
    def moving_reference(self) -> SharedNetworkReference | None:
        """The reference, where it moves."""
        policy = self.train_set.reference.reference_policy
        return policy if self.config.reference_sync_steps and isinstance(policy, SharedNetworkReference) else None

    def restore(self, state: TrainingState, provenance: dict[str, str]) -> None:
        """Stand where a checkpoint was written; the adapter's tensors are put back by the caller.

        Raises `UserError` where nothing is left to do.
        """
        if state.progress.step >= self.steps or (state.progress.finished and self.config.patience):
            hint = "Give more --epochs or --iters, and --resume-anyway, to train further."
            where = Where(str(self.folder.path))
            raise UserError(f"this run has done all its {state.progress.step} steps", where=where, hint=hint)
        self.progress, self.optimizer.state = state.progress, state.optimizer
        self.progress.made_of, self.progress.finished = provenance, False
        self.optimizer.init(self.model.trainable_parameters())
        if self.moving_reference and state.moving_reference:
            self.moving_reference.tensors = state.moving_reference
        self._saved_step = state.progress.step

    def training_state(self) -> TrainingState:
        """All that a checkpoint must hold beside the adapter."""
        tables = {name: one.reference.table for name, one in self.example_sets.items()}
        moving = self.moving_reference.tensors if self.moving_reference else {}
        return TrainingState(self.progress, self.optimizer.state, tables, moving)

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
            for batch in optimizer_batches(self.train_set.examples, order, self.budget, self.loss, self.communicator):
                self.step(batch)
                after = self._after_step() or after
                if self._should_stop_early():
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
        self._saved_step = -1  # that it is finished is to be in its checkpoint
        self._save(last=True)
        return after

    def _should_stop_early(self) -> bool:
        """Whether evaluations have stopped improving."""
        patience = self.config.patience
        if not patience or self.progress.stale < patience:
            return False
        self.listener.on_note(f"stopped early: the last {patience} evaluations did not lower the held-out loss.")
        return True

    def step(self, batch: OptimizerBatch) -> None:
        """One optimizer step."""
        began, sent = time.perf_counter(), self.communicator.bytes_sent
        rate, running = learning_rate_at(self.config, self.progress.step, self.steps), self.progress.running
        gradients, rows, self.progress.running = self.gradients.compute(batch, self.progress.step, running)
        told = self._gather_results(batch, rows)
        metrics = mean_metrics([told["metrics"]])
        gradients = self.communicator.all_sum(gradients)
        norm = self._update(gradients, rate) if np.isfinite(metrics["loss"]) else float("nan")
        self.progress.step += 1
        if np.isfinite(norm):
            self.progress.in_a_row = 0
            self.progress.pending += told["metrics"].tolist()
            self.progress.grad_norms.append(norm)
        else:
            self.progress.running = running
            self._record_skipped_step(told["indices"], told["metrics"], metrics["loss"])
        self._move_reference()
        self._throughput.seconds += time.perf_counter() - began
        self._throughput.pairs += batch.size
        self._throughput.steps += 1
        self._throughput.tokens += int(told["tokens"].sum())
        self._throughput.bytes_sent += self.communicator.bytes_sent - sent
        self._peak_memory_gb = float(told["peak"].max())
        spent = {"peak_memory_gb": self._peak_memory_gb, "reference_seconds": self.train_set.reference.seconds}
        self.listener.on_step(self.progress.step, {**metrics, **spent})

    def _gather_results(self, batch: OptimizerBatch, rows: np.ndarray) -> Arrays:
        """What every rank is to know of the others' part of a step: metrics and references, work and memory."""
        indices, reference, marks = batch.indices_in_order, self.train_set.reference, self.train_set.examples.flags
        known = {"reference": reference.table[indices], "marks": marks[indices]}
        of_examples = {"indices": indices, "metrics": rows, **known}
        work = {
            "tokens": [sum(micro.num_tokens for micro in batch.micro_batches)],
            "peak": [mx.get_peak_memory() / 1e9],
        }
        told, _ = self.communicator.gather_and_concatenate(
            of_examples | {name: np.array(value) for name, value in work.items()}
        )
        reference.fill(told["indices"], told["reference"])
        marks[told["indices"]] = told["marks"]
        return told

    def _move_reference(self) -> None:
        """Where it is time to; what was known of the reference holds no more."""
        if self.moving_reference and self.progress.step % self.config.reference_sync_steps == 0:
            self.moving_reference.soft_update(
                trainable_tensors(self.model), self.config.reference_mixup or DEFAULT_REFERENCE_MIXUP
            )
            for one in self.example_sets.values():
                one.reference.clear()

    def _update(self, gradients: Any, rate: float) -> float:
        """One optimizer step; returns the gradient's norm before clipping."""
        limit = self.config.max_grad_norm or float("inf")
        gradients, norm = clip_grad_norm(gradients, limit)
        if np.isfinite(norm.item()):  # else the tensors stay as they are, and the run ends with a sentence
            self.optimizer.learning_rate = rate
            self.optimizer.update(self.model, gradients)
            mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return norm.item()

    def _record_skipped_step(self, indices: np.ndarray, rows: np.ndarray, loss: float) -> None:
        """Count, name and write down a step that changed nothing. Raises `Diverged` after `MOST_IN_A_ROW`."""
        progress = self.progress
        progress.skipped += 1
        progress.in_a_row += 1
        at_fault = find_non_finite(indices, rows, self.train_set.examples)
        places = ", ".join(str(one.where) for one in at_fault[:MAX_ROWS_NAMED]) + (
            ", ..." if len(at_fault) > MAX_ROWS_NAMED else ""
        )
        what = "loss" if not np.isfinite(loss) else "gradient"
        self.listener.on_note(
            f"step {progress.step}: the {what} is not a finite number, so it was skipped. It saw {places}; "
            f"their tokens are in {self.folder.path / NON_FINITE_FILE}."
        )
        with suppress(SaveError):  # of two faults at once the first is told
            for one in at_fault if self.communicator.is_main else []:
                self.folder.append_line(NON_FINITE_FILE, one.to_json(progress.step))
        if progress.in_a_row == MAX_CONSECUTIVE_SKIPS:
            raise self._diverged()

    def _diverged(self) -> Diverged:
        latest, count = self.folder.latest_checkpoint(), self.progress.in_a_row
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
        if not last and self._stop_requested():
            self._save(last=True)
            raise Interrupted(
                step, str(self.folder.latest_checkpoint() or self.folder.path)
            )  # other ranks have no checkpoints
        if (config.save_every and step % config.save_every == 0) or (self._save_failed and report_due):
            self._save()
        return measured

    def _stop_requested(self) -> bool:
        """Whether any rank is."""
        sent = self.communicator.bytes_sent
        asked = any(self.communicator.all_gather_json(self.stop.is_set()))
        self._throughput.bytes_sent += self.communicator.bytes_sent - sent
        return asked

    def _report(self) -> None:
        if not self.progress.pending:
            return  # every step was skipped
        seconds = max(self._throughput.seconds, 1e-9)
        metrics = {
            **self._position(),
            **mean_metrics([np.array(self.progress.pending)]),
            "grad_norm": float(np.mean(self.progress.grad_norms)),
            "learning_rate": learning_rate_at(self.config, self.progress.step - 1, self.steps),
            "pairs_per_second": self._throughput.pairs / seconds,
            "tokens_per_second": self._throughput.tokens / seconds,
            "peak_memory_gb": self._peak_memory_gb,
            **(
                {"bytes_sent": self._throughput.bytes_sent / max(1, self._throughput.steps)}
                if self.communicator.size > 1 and self.communicator.data_parallel
                else {}
            ),
            **({"skipped_steps": self.progress.skipped} if self.progress.skipped else {}),
        }
        self.progress.pending, self.progress.grad_norms, self._throughput = [], [], ThroughputMeter()
        self.listener.on_metrics(metrics)

    def _position(self) -> dict[str, float]:
        return {"step": self.progress.step, "epoch": self.progress.step / self.epochs.steps_per_epoch}

    def _evaluate(self) -> dict[str, float]:
        if self.held_out_set is None:
            return {}
        count, measured = len(self.held_out_set.indices), list[ExampleMeasurement]()
        metrics = evaluate_examples(
            self.budget,
            self.held_out_set.examples,
            self.held_out_set.indices,
            self.held_out_set.reference,
            self.loss,
            batch_size=self.config.batch_size,
            loss_state=self.progress.running,
            on_progress=lambda done: self.listener.on_evaluation_progress(done, count),
            on_measurement=measured.append,
            communicator=self.communicator,
        )
        self.listener.on_evaluation_metrics({**self._position(), **{f"eval_{k}": v for k, v in metrics.items()}})
        self._update_best(metrics["loss"])
        self.listener.on_evaluation_snapshot(
            EvalSnapshot(self.progress.step, measured, self.held_out_set, self.policy, self.budget)
        )
        return metrics

    def _update_best(self, loss: float) -> None:
        """Count evaluations since the best one, and keep that."""
        progress = self.progress
        if progress.best_loss is not None and not loss < progress.best_loss:
            progress.stale += 1
            return
        progress.best_loss, progress.stale = loss, 0
        if self.config.keep_best and progress.step and self._save():
            with suppress(SaveError):
                self.folder.mark_best(progress.step, loss)

    def _save(self, last: bool = False) -> bool:
        """Write a checkpoint and the run's adapter, unless this step's are there already.

        Where that can't be done, it is said, and tried again with the next report; `last` says that there is none.

        Returns: whether it is written. Raises `UserError` where it is the last chance.
        """
        step = self.progress.step
        if self._saved_step == step:
            return True
        if self.progress.in_a_row or not self.communicator.is_main:
            return False  # who knows what the tensors are worth
        tensors, spec, config = trainable_tensors(self.model), self.policy.spec, self.config
        try:
            path = self.folder.save_checkpoint(self.training_state(), tensors, spec, config.model, dump_yaml(config))
            self.folder.save_adapter(tensors, spec, config.model)
        except SaveError as error:
            self._report_failed_save(str(error), last)
            return False
        self._saved_step, self._save_failed = step, False
        self.folder.prune_checkpoints(config.keep_checkpoints)
        self.listener.on_checkpoint_saved(step, path)
        return True

    def _report_failed_save(self, reason: str, last: bool) -> None:
        latest = self.folder.latest_checkpoint()
        kept = f"the last checkpoint is {latest}" if latest else "there is no checkpoint yet"
        if last:
            hint = "Make room, and go on with --resume." if latest else "Make room, and start again."
            message = f"step {self.progress.step} could not be saved: {reason}; {kept}"
            raise UserError(message, where=Where(str(self.folder.path)), hint=hint)
        if not self._save_failed:
            step = self.progress.step
            self.listener.on_note(
                f"step {step} could not be saved: {reason}; {kept}. It is tried again with every report."
            )
        self._save_failed = True
