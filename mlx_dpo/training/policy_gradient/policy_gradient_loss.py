"""The loss of PPO and RLOO over the tokens of sampled completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.distributed.communicator import Arrays
from mlx_dpo.objectives import LossStates, WeightedLoss
from mlx_dpo.objectives.sampled_tokens import SampledTokens, example_tokens
from mlx_dpo.training.batch_loss import BatchLoss, BatchLossResult
from mlx_dpo.training.policy_gradient.trajectory import Trajectory

_COLUMNS = ("old_logps", "old_values", "advantages", "returns")  # of a trajectory


class PolicyGradientLoss(BatchLoss):
    """A policy gradient. A completion's loss depends on no other one: advantages are known before training on them."""

    whole_batch = False

    def __init__(self, loss: WeightedLoss) -> None:
        """Create the loss.

        Args:
            loss: its only term is the policy gradient.
        """
        ((self._weight, self._function),) = loss.terms
        self._settings = {name: loss.settings[name] for name in self._function.keyword_defaults}
        self.metric_names = tuple(self._metrics(example_tokens(), np.zeros(2)))

    def columns(self, micro_batches: Sequence[MicroBatch], outputs: Sequence[Arrays]) -> Arrays:
        """Return the fields of `SampledTokens`, each [completions, tokens], of a single micro-batch."""
        (micro,), (columns,) = micro_batches, outputs
        columns = {**columns, **{name: np.zeros_like(columns["logps"]) for name in (*_COLUMNS, "mask")}}
        for i, trajectory in enumerate(micro.examples):
            assert isinstance(trajectory, Trajectory)
            length = len(trajectory.old_logps)
            columns["mask"][i, :length] = 1
            for name in _COLUMNS:
                columns[name][i, :length] = getattr(trajectory, name)
        return columns

    def __call__(self, columns: Arrays, statistics: float, states: LossStates) -> BatchLossResult:
        """Compute losses and gradients; see `BatchLoss`."""
        arrays = {name: mx.array(values.astype(np.float32)) for name, values in columns.items()}
        tokens = SampledTokens(**arrays, mean_tokens=statistics)

        def losses_of(logps: mx.array, values: mx.array) -> mx.array:
            inputs = replace(tokens, logps=logps, values=values)
            return self._weight * self._function.function(inputs, **self._settings)

        inputs, ones = [tokens.logps, tokens.values], mx.ones(len(tokens.logps))
        (losses,), gradients = mx.vjp(losses_of, inputs, [ones])
        metrics = self._metrics(tokens, np.array(losses))
        by_output = dict(zip(("logps", "values"), map(np.array, gradients), strict=True))
        return BatchLossResult(np.stack(list(metrics.values()), axis=1), by_output, dict(states))

    def _metrics(self, tokens: SampledTokens, losses: np.ndarray) -> dict[str, np.ndarray]:
        """[completions] float64 of each metric."""
        assert self._function.statistics is not None
        statistics = self._function.statistics(tokens, **self._settings)
        return {"loss": losses.astype(np.float64)} | {
            name: np.array(values).astype(np.float64) for name, values in statistics.items()
        }
