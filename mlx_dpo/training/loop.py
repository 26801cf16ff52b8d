"""The training loop: batches in, optimizer steps out, with everything in between told to a listener."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.optimizers import clip_grad_norm
from mlx.utils import tree_map

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.batches import Epochs, MicroBatch
from mlx_dpo.errors import Interrupted, UserError, Where
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.completion_logps import CompletionLogps
from mlx_dpo.model.loading import trainable
from mlx_dpo.model.network import Trace
from mlx_dpo.model.policy import Policy
from mlx_dpo.model.random_state import random_state
from mlx_dpo.model.reference import SameNetwork
from mlx_dpo.objectives import Loss
from mlx_dpo.training.checkpoint import ExactState, Progress, RunFolder
from mlx_dpo.training.evaluation import Measured, evaluate_examples
from mlx_dpo.training.held_out import HeldOut
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.metrics import mean_metrics
from mlx_dpo.training.optimizer import learning_rate, make_optimizer
from mlx_dpo.training.pair_sets import HELD_OUT, TRAIN, PairSets
from mlx_dpo.training.scored import Batch, BatchFacts, Scored, asked, batches_of, by_micro_batch

MIXUP = 0.6  # of --reference-mixup, TR-DPO's


@dataclass
class Stopwatch:
    """Time and work of the steps since the last report; evaluations and saves don't count."""

    seconds: float = 0.0
    pairs: int = 0
    tokens: int = 0


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
    ) -> None:
        self.config, self.policy, self.budget, self.loss = config, policy, budget, loss
        self.sets, self.train_set, self.held_out = sets, sets[TRAIN], sets.get(HELD_OUT)
        self.folder, self.listener, self.stop = folder, listener, stop
        self.model = policy.model
        self.optimizer = make_optimizer(config)
        self.optimizer.init(self.model.trainable_parameters())
        self.epochs = Epochs(self.train_set.indices, config.batch_size, config.seed)
        self.steps = config.iters or max(1, math.ceil(config.epochs * self.epochs.steps))
        self.progress = Progress()
        self._watch = Stopwatch()
        self._saved_at = -1

    @property
    def moving(self) -> SameNetwork | None:
        """The reference, where it moves."""
        policy = self.train_set.reference.policy
        return policy if self.config.reference_sync_steps and isinstance(policy, SameNetwork) else None

    def restore(self, exact: ExactState) -> None:
        """Stand where a checkpoint was written; the adapter's tensors are put back by the caller.

        Raises `UserError` where nothing is left to do.
        """
        if exact.progress.step >= self.steps:
            hint = "Give more --epochs or --iters to train further."
            where = Where(str(self.folder.path))
            raise UserError(f"this run has done all its {self.steps} steps", where=where, hint=hint)
        self.progress, self.optimizer.state = exact.progress, exact.optimizer
        self.optimizer.init(self.model.trainable_parameters())
        mx.random.seed(exact.random)
        if self.moving and exact.moving:
            self.moving.tensors = exact.moving
        self._saved_at = exact.progress.step

    def exact_state(self) -> ExactState:
        """All that a checkpoint must hold beside the adapter."""
        tables = {name: one.reference.table for name, one in self.sets.items()}
        moving = self.moving.tensors if self.moving else {}
        return ExactState(self.progress, self.optimizer.state, random_state(), tables, moving)

    def run(self) -> dict[str, float]:
        """Train to the last step. Returns the held-out metrics after it (empty without held-out pairs).

        Raises:
            Interrupted: `stop` was set; the step was finished and saved.
            UserError: something of the user's is wrong; what was done is saved.
        """
        after: dict[str, float] = {}
        if self.progress.step == 0:
            self.progress.before = self._evaluate()
        order = (self.epochs.batch(step) for step in range(self.progress.step, self.steps))
        self.model.train()
        try:
            for batch in batches_of(self.train_set.pairs, order, self.budget, self.loss):
                self.step(batch)
                after = self._after_step() or after
        except UserError:
            if self.progress.step:
                self._save()
            raise
        finally:
            self.model.eval()
        self._save()
        return after

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        began = time.perf_counter()
        rate = learning_rate(self.config, self.progress.step, self.steps)
        gradients, rows = self._accumulate(batch)
        norm = self._update(gradients, rate)
        metrics = mean_metrics(rows)
        self._require_finite(metrics["loss"], norm)
        self.progress.step += 1
        self._move_reference()
        self.progress.pending += [row.tolist() for table in rows for row in table]
        self.progress.grad_norms.append(norm)
        self._watch.seconds += time.perf_counter() - began
        self._watch.pairs += len(batch.indices)
        self._watch.tokens += sum(m.tokens for m in batch.micros)
        self.listener.step(self.progress.step, {**metrics, "reference_seconds": self.train_set.reference.seconds})

    def _accumulate(self, batch: Batch) -> tuple[Any, list[np.ndarray]]:
        """The gradient of the optimizer batch's mean loss, and its examples' metrics, a micro-batch at a time.

        Where a pair's loss hangs on the other pairs', all log-probs come first, and a micro-batch is run once more for
        its gradient: with the same dropout, since the random state goes back to where it was.
        """
        gradients, rows = None, []
        loss, micros = self.loss, batch.micros
        facts = BatchFacts.of(batch, self.policy.network, self.train_set.reference)
        for together in [micros] if loss.whole_batch else [[micro] for micro in micros]:
            references = [self.train_set.reference.of(batch.of(micro), micro) for micro in together]
            trace = self._trace(together[0]) if len(together) == 1 else None
            logps = [trace.logps] if trace else self._logps_before_trace(together)
            scored = Scored.of(together, logps, references, facts, loss)
            self.progress.running = {**self.progress.running, **loss.updated(self.progress.running, scored.seen)}
            losses, slopes = loss.with_slopes(scored.seen, self.progress.running, scored.weights)
            rows.append(scored.metrics(losses))
            shares = {kind: each / len(batch.indices) for kind, each in slopes.items()}
            for micro, weights in zip(together, by_micro_batch(shares, together), strict=True):
                part = (trace or self._trace(micro)).gradient(**weights)
                gradients = part if gradients is None else tree_map(mx.add, gradients, part)
                mx.eval(gradients)  # a micro-batch is evaluated on its own, or memory grows with the batch
        return gradients, rows

    def _trace(self, micro: MicroBatch) -> Trace:
        more = asked(self.loss, self.train_set.reference, micro)
        return self.policy.network.trace(micro, self.budget.recomputed(micro), **more)

    def _logps_before_trace(self, micros: list[MicroBatch]) -> list[CompletionLogps]:
        state, reference = random_state(), self.train_set.reference
        logps = [self.policy.network.logps(micro, **asked(self.loss, reference, micro)) for micro in micros]
        mx.random.seed(state)
        return logps

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

    def _require_finite(self, loss: float, norm: float) -> None:
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise UserError(
                f"the loss or its gradient is not a finite number at step {self.progress.step + 1} "
                f"(loss {loss}, gradient norm {norm})",
                hint=f"Try a lower --learning-rate; what was trained before it is in {self.folder.path}.",
            )

    def _after_step(self) -> dict[str, float] | None:
        """Report, evaluate and save where it is time to; held-out metrics if they were measured."""
        step, last = self.progress.step, self.progress.step == self.steps
        config = self.config
        if step % config.steps_per_report == 0 or last:
            self._report()
        measured = None
        if last or (config.steps_per_eval and step % config.steps_per_eval == 0):
            measured = self._evaluate()
        if self.stop.is_set() and not last:
            raise Interrupted(step, str(self._save()))
        if config.save_every and step % config.save_every == 0:
            self._save()
        return measured

    def _report(self) -> None:
        seconds = max(self._watch.seconds, 1e-9)
        metrics = {
            **self._place(),
            **mean_metrics([np.array(self.progress.pending)]),
            "grad_norm": float(np.mean(self.progress.grad_norms)),
            "learning_rate": learning_rate(self.config, self.progress.step - 1, self.steps),
            "pairs_per_second": self._watch.pairs / seconds,
            "tokens_per_second": self._watch.tokens / seconds,
            "peak_memory_gb": mx.get_peak_memory() / 1e9,
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
        )
        self.listener.evaluation({**self._place(), **{f"eval_{k}": v for k, v in metrics.items()}})
        self.listener.held_out(HeldOut(self.progress.step, measured, self.held_out, self.policy, self.budget))
        return metrics

    def _save(self) -> Path:
        """Write a checkpoint and the run's adapter, unless this step's are there already."""
        step = self.progress.step
        if self._saved_at != step:
            tensors, spec, model = trainable(self.model), self.policy.spec, self.config.model
            path = self.folder.save_checkpoint(self.exact_state(), tensors, spec, model)
            self.folder.save_adapter(tensors, spec, model)
            self._saved_at = step
            self.listener.saved(step, path)
        return self.folder.require_latest()
