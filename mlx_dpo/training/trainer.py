"""The training loop: batches in, optimizer steps out, with an event for everything in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.config import TrainConfig
from mlx_dpo.data.prefetching import prefetch
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator
from mlx_dpo.errors import Diverged, Interrupted, UserError, Where
from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot
from mlx_dpo.evaluation.metrics import mean_metrics
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch
from mlx_dpo.objectives import LossStates
from mlx_dpo.training import events
from mlx_dpo.training.batch_loss import BatchLoss
from mlx_dpo.training.batch_source import BatchSource, batches_of_steps
from mlx_dpo.training.checkpoint import TrainingProgress, TrainingState
from mlx_dpo.training.checkpoint_saver import CheckpointSaver
from mlx_dpo.training.events import Metrics
from mlx_dpo.training.gradients import GradientComputer
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.non_finite import SkippedSteps
from mlx_dpo.training.optimizer import apply_gradients, learning_rate_at, make_optimizer, total_steps
from mlx_dpo.training.result_sharing import share_results
from mlx_dpo.training.scorer import Scorer
from mlx_dpo.training.throughput import ThroughputMeter
from mlx_dpo.utils.stop_flag import StopRequested, stop_on

# Measures the held-out examples at a step, with a running state of the loss; reports (examples done, total).
Evaluate = Callable[[int, LossStates, Callable[[int, int], None]], tuple[Metrics, EvalSnapshot]]


class Trainer:
    """The training loop; `run` takes all steps.

    Attributes:
        steps: optimizer steps of the whole run.
        progress: step, pending metrics and counters.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: BatchSource,
        scorer: Scorer,
        loss: BatchLoss,
        evaluate: Evaluate | None,
        saver: CheckpointSaver,
        listener: Listener,
        stop: threading.Event,
        communicator: Communicator = SINGLE_PROCESS,
    ) -> None:
        """Create a trainer at step 0.

        Args:
            config: the run's settings, resolved.
            source: provides the examples of each step.
            scorer: runs the model over them.
            loss: turns the scorer's outputs into losses and gradients.
            evaluate: measures held-out examples; None if there are none.
            saver: writes checkpoints.
            listener: receives events.
            stop: set it to end the run; finished steps are saved.
            communicator: ranks that train together.
        """
        self.config, self.source, self.scorer, self.loss, self.evaluate = config, source, scorer, loss, evaluate
        self.saver, self.listener, self.stop, self.communicator = saver, listener, stop, communicator
        self.model, self.steps = scorer.model, total_steps(config, source.steps_per_epoch)
        self.gradients = GradientComputer(scorer, loss, communicator, config.seed)
        self.optimizer = make_optimizer(config)
        self.optimizer.init(self.model.trainable_parameters())
        self.progress = TrainingProgress()
        self._skipped_steps = SkippedSteps(saver.folder, listener, loss.metric_names, communicator)
        self._throughput = ThroughputMeter(communicator)
        self._peak_memory_gb = self._sampling_seconds = 0.0

    def restore(self, state: TrainingState, provenance: dict[str, str]) -> None:
        """Continue from a checkpoint's state. The caller has already loaded the adapter.

        Args:
            state: the checkpoint's state.
            provenance: versions and digests of this process.

        Raises:
            UserError: all steps are done.
        """
        step, finished = state.progress.step, state.progress.finished
        if step > self.steps or (finished and (step == self.steps or self.config.patience)):
            where, hint = Where(str(self.saver.folder.path)), "Give more --epochs or --iters, and --resume-anyway."
            raise UserError(f"this run has done all its {step} steps", where=where, hint=hint)
        self.progress, self.optimizer.state = state.progress, state.optimizer
        self.progress.provenance, self.progress.finished = provenance, False
        self.optimizer.init(self.model.trainable_parameters())
        self.scorer.restore(state.scorer)
        self.source.restore(state.source)
        self.saver.saved_step = state.progress.step

    def state(self) -> TrainingState:
        """Return the state that a checkpoint holds beside the adapter."""
        return TrainingState(self.progress, self.optimizer.state, self.scorer.state(), self.source.state())

    def run(self) -> Metrics:
        """Train to the last step.

        Returns:
            The held-out metrics after it; empty without held-out examples.

        Raises:
            Interrupted: `stop` was set; the last finished step is saved.
            UserError: the input must be changed; finished steps are saved.
            Diverged: loss or gradient are no longer finite; earlier checkpoints stay.
        """
        try:
            # Ranks stop together, after a step: one that stopped by itself would leave the others waiting.
            with stop_on(self.stop) if self.communicator.size == 1 else nullcontext():
                if self.progress.step == 0:
                    self.progress.metrics_before = self._evaluate()
                self.model.train()
                metrics = self._train()
        except StopRequested:
            raise self._interrupted() from None
        except UserError as error:
            if self.progress.step and not isinstance(error, Diverged):
                self._save()
            raise
        finally:
            self.model.eval()
        if self.progress.consecutive_skips:
            raise self._skipped_steps.diverged(self.progress)
        self.progress.finished = True
        self.saver.update_progress(self.state(), trainable_tensors(self.model), is_last=True)
        return metrics

    def _interrupted(self) -> Interrupted:
        """Save the last finished step, and return what to raise."""
        if self.progress.step:
            self._save(is_last=True)
        return Interrupted(self.progress.step, str(self.saver.folder.latest_checkpoint() or self.saver.folder.path))

    def _train(self) -> Metrics:
        """Take all steps; return the held-out metrics after the last one."""
        metrics: Metrics = {}
        if self.progress.evaluation_is_pending(self.steps, self.config.steps_per_eval):
            metrics = self._evaluate()  # an earlier process ended during this evaluation
            if self._should_stop_early():
                return metrics
        for batch in self._batches():
            if batch is None:
                self._skip_step()
            else:
                self.step(batch)
            metrics = self._after_step()
            if self._should_stop_early():
                break
        else:
            if self.progress.step < self.steps:  # the source is exhausted
                self._report()
                metrics = self._save_and_evaluate()
        return metrics

    def _batches(self) -> Iterator[OptimizerBatch | None]:
        """This rank's share of every batch from here to the last step; None for a step to skip."""
        batches = (
            None if examples is None else self.scorer.make_batch(examples, self.communicator)
            for examples in batches_of_steps(self.source, self.progress.step, self.steps)
        )
        return prefetch(batches) if self.source.can_prefetch else batches

    def _should_stop_early(self) -> bool:
        """Whether evaluations have stopped improving."""
        patience = self.config.patience
        if not self.progress.has_stopped_improving(patience):
            return False
        self.listener.handle(events.Note(f"stopped early: no lower held-out loss in the last {patience} evaluations."))
        return True

    def step(self, batch: OptimizerBatch) -> None:
        """Take an optimizer step.

        Args:
            batch: this rank's share of the examples.

        Raises:
            Diverged: too many steps in a row were skipped because loss or gradient was not finite.
        """
        progress, states_before = self.progress, self.progress.loss_states
        with self._throughput.measure():
            gradients, local_metrics, states = self.gradients.compute(batch, progress.step, states_before)
            results, local = share_results(self.communicator, (self.scorer, self.source), batch, local_metrics)
            example_metrics = results["metrics"]
            self._throughput.tokens += int(results["tokens"].sum())
            self._peak_memory_gb = float(results["peak_memory"].max())
            metrics = mean_metrics([example_metrics], self.loss.metric_names)
            gradients = self.communicator.all_sum(gradients)
            norm = float("nan")
            if np.isfinite(metrics["loss"]):
                self.optimizer.learning_rate = learning_rate_at(self.config, progress.step, self.steps)
                norm = apply_gradients(self.optimizer, self.model, gradients, self.config.max_grad_norm)
            progress.step += 1
            if np.isfinite(norm):
                progress.loss_states, progress.consecutive_skips = states, 0
                progress.pending_metrics += example_metrics.tolist()
                progress.grad_norms.append(norm)
            else:
                self._skipped_steps.record(progress, batch, example_metrics, local)
            self.scorer.after_step(progress.step)
            self.source.after_step(progress.step)
        self._throughput.examples += batch.size
        self._throughput.steps += 1
        metrics |= {"peak_memory_gb": self._peak_memory_gb, "reference_seconds": self.scorer.reference_seconds}
        self.listener.handle(events.Step(progress.step, metrics))

    def _skip_step(self) -> None:
        """Take a step for which the source has no examples."""
        self.progress.step += 1
        self.source.after_step(self.progress.step)

    def _after_step(self) -> Metrics:
        """Report, evaluate and save when due; return the held-out metrics if they were measured."""
        config, step, is_last = self.config, self.progress.step, self.progress.step == self.steps
        report_due = step % config.steps_per_report == 0 or is_last
        if report_due:
            self._report()
        metrics: Metrics = {}
        if is_last or (config.steps_per_eval and step % config.steps_per_eval == 0):
            metrics = self._save_and_evaluate()
        if not is_last and self._stop_requested():
            raise self._interrupted()
        if (config.save_every and step % config.save_every == 0) or (self.saver.has_failed and report_due):
            self._save()
        return metrics

    def _stop_requested(self) -> bool:
        """Whether a stop was requested on any rank."""
        bytes_before = self.communicator.bytes_sent
        is_requested = any(self.communicator.all_gather_json(self.stop.is_set()))
        self._throughput.bytes_sent += self.communicator.bytes_sent - bytes_before
        return is_requested

    def _report(self) -> None:
        progress, source_metrics = self.progress, self.source.report_metrics()
        if not progress.pending_metrics and not source_metrics:
            return  # every step was skipped
        metrics = {
            **self._position(),
            **progress.take_pending_metrics(self.loss.metric_names),
            **source_metrics,
            "learning_rate": learning_rate_at(self.config, progress.step - 1, self.steps),
            **self._throughput.metrics(),
            "peak_memory_gb": self._peak_memory_gb,
            **({"skipped_steps": progress.skipped_steps} if progress.skipped_steps else {}),
        }
        self._throughput = ThroughputMeter(self.communicator)
        self.listener.handle(events.MetricsReport(metrics))

    def _position(self) -> Metrics:
        step, steps_per_epoch = self.progress.step, self.source.steps_per_epoch
        return {"step": step, "epoch": step / steps_per_epoch} if steps_per_epoch else {"step": step}

    def _save_and_evaluate(self) -> Metrics:
        """Evaluate after the step is saved, so that nothing that fails or is interrupted there costs a step."""
        step, save_every, tensors = self.progress.step, self.config.save_every, trainable_tensors(self.model)
        is_due = step == self.steps or bool(save_every and step % save_every == 0)
        self.saver.save(self.state(), tensors, is_temporary=not is_due)
        metrics = self._evaluate()
        if is_last := step == self.steps or self.progress.has_stopped_improving(self.config.patience):
            self._save()  # a temporary one stays
        # Written together with the evaluation: a process that ended in between would leave a run with nothing to do.
        self.progress.finished = is_last and not self.progress.consecutive_skips
        self.saver.update_progress(self.state(), tensors)
        self.saver.remove_temporary()
        return metrics

    def _evaluate(self) -> Metrics:
        if self.evaluate is None:
            self.progress.evaluated_step = self.progress.step
            return {}
        handle = self.listener.handle
        metrics, snapshot = self.evaluate(
            self.progress.step, self.progress.loss_states, lambda *done: handle(events.EvaluationProgress(*done))
        )
        handle(events.EvaluationMetrics(self._position() | {f"eval_{name}": metrics[name] for name in metrics}))
        if self.progress.record_loss(metrics["loss"]) and self.config.keep_best and self.progress.step:
            self.saver.save_best(self.state(), trainable_tensors(self.model), metrics["loss"])
        handle(events.SnapshotTaken(snapshot))
        self._sampling_seconds += snapshot.sampling_seconds
        handle(events.EvaluationRecorded(snapshot.example_set.reference.seconds, self._sampling_seconds))
        self.progress.evaluated_step = self.progress.step
        return metrics

    def _save(self, is_last: bool = False) -> None:
        self.saver.save(self.state(), trainable_tensors(self.model), is_last=is_last)
