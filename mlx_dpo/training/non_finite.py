"""Steps whose loss or gradient is not finite: they are skipped, and their examples are recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.errors import Diverged, Where
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch
from mlx_dpo.training.checkpoint import TrainingProgress
from mlx_dpo.training.events import Note
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.run_folder import RunFolder, SaveError

NON_FINITE_FILE = "not_finite.jsonl"  # in the run's folder
MAX_CONSECUTIVE_SKIPS = 10
MAX_ROWS_NAMED = 4  # in a note


@dataclass(frozen=True)
class SkippedSteps:
    """Records skipped steps.

    Attributes:
        folder: the run's folder.
        listener: receives a note for each.
        metric_names: names of the metrics. "loss" is a number; others may be NaN where an example has no such number.
        communicator: ranks that share a batch.
    """

    folder: RunFolder
    listener: Listener
    metric_names: Sequence[str]
    communicator: Communicator

    def record(self, progress: TrainingProgress, batch: OptimizerBatch, metrics: np.ndarray, local: slice) -> None:
        """Count a step that changed nothing, and write its examples to not_finite.jsonl.

        Args:
            progress: counts the skipped steps.
            batch: this rank's share of the step's examples.
            metrics: [examples, metric names], of all ranks' examples.
            local: slice of this rank's rows in `metrics`.

        Raises:
            Diverged: `MAX_CONSECUTIVE_SKIPS` steps in a row were skipped.
        """
        progress.skipped_steps += 1
        progress.consecutive_skips += 1
        examples = self._examples_at_fault(batch, metrics, local)
        rows = ", ".join(str(Where(example["file"], example["line"])) for example in examples[:MAX_ROWS_NAMED])
        rows += ", ..." if len(examples) > MAX_ROWS_NAMED else ""
        culprit = "gradient" if np.isfinite(self._losses(metrics)).all() else "loss"
        text = f"step {progress.step}: the {culprit} is not a finite number, so it was skipped. Its rows: {rows}"
        self.listener.handle(Note(f"{text}; their tokens are in {self.folder.path / NON_FINITE_FILE}."))
        with suppress(SaveError):  # the note is what matters
            for example in examples if self.communicator.is_main else []:
                self.folder.append_line(NON_FINITE_FILE, json.dumps({"step": progress.step, **example}))
        if progress.consecutive_skips == MAX_CONSECUTIVE_SKIPS:
            raise self.diverged(progress)

    def diverged(self, progress: TrainingProgress) -> Diverged:
        """Return the error that ends a run whose latest steps were skipped."""
        latest = self.folder.latest_checkpoint()
        kept = f"what was trained before is in {latest}" if latest else "nothing was saved before"
        return Diverged(
            f"the last {progress.consecutive_skips} steps had a loss or a gradient that is not a finite number; {kept}",
            where=Where(str(self.folder.path)),
            hint="Lower --learning-rate first, then --scale; a 16-bit model may need --max-grad-norm 0.1.",
        )

    def _losses(self, metrics: np.ndarray) -> np.ndarray:
        return metrics[:, list(self.metric_names).index("loss")]

    def _examples_at_fault(self, batch: OptimizerBatch, metrics: np.ndarray, local: slice) -> list[dict[str, Any]]:
        """Those whose own metrics are not finite, or the whole batch where no single one is to blame, on all ranks."""
        at_fault = np.isinf(metrics).any(axis=1) | np.isnan(self._losses(metrics))
        if not at_fault.any():
            at_fault[:] = True
        in_order = [batch.examples[i] for micro in batch.micro_batches for i in micro.batch_indices]
        examples = [
            {
                "file": example.location.file,
                "line": example.location.line,
                "prompt": example.encoded.prompt,
                "completions": example.encoded.completions,
            }
            for example, is_at_fault in zip(in_order, at_fault[local], strict=True)
            if is_at_fault
        ]
        if not self.communicator.data_parallel:
            return examples
        return [example for shard in self.communicator.all_gather_json(examples) for example in shard]
