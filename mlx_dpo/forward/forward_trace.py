"""A forward pass whose log-probs are computed and whose backward pass waits for the loss's gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.token_logps import TokenTerms
from mlx_dpo.utils.stop_flag import check_stop
from mlx_dpo.utils.tensor_names import block_prefix


@dataclass(frozen=True)
class ForwardTrace:
    """A micro-batch's forward pass, ready for its backward pass.

    Attributes:
        logps: log-probs of the completions.
        terms: log-probs and their gradients by token.
        backward: maps the loss's gradient with respect to the hidden states, [tokens, hidden] float32, to lazy
            gradients of the trainable parameters.
    """

    logps: CompletionLogps
    terms: TokenTerms
    backward: Callable[[mx.array], Any]

    def gradient(
        self,
        sums: np.ndarray,
        plain: np.ndarray | None = None,
        kls: np.ndarray | None = None,
        kl_scores: np.ndarray | None = None,
    ) -> Any:
        """Compute the gradient of the trainable parameters; evaluated.

        Args:
            sums: [sequences], the loss's gradient with respect to `CompletionLogps.sums`.
            plain: [sequences], with respect to `CompletionLogps.unweighted_sums`.
            kls: [sequences], with respect to `CompletionLogps.kls`.
            kl_scores: [sequences], with respect to `CompletionLogps.kl_scores`.

        Returns:
            A tree like the model's trainable parameters.
        """
        assert self.terms.logp_grads is not None
        upstream_grad = self.logps.token_grads(sums, plain, kl_scores) * self.terms.logp_grads.astype(mx.float32)
        if kls is not None and self.terms.kl_grads is not None:
            kl_weights = mx.array(kls[self.logps.sequence_indices].astype(np.float32))[:, None]
            upstream_grad = upstream_grad + kl_weights * self.terms.kl_grads.astype(mx.float32)
        return self._run_backward(upstream_grad)

    def token_gradient(self, logps: np.ndarray, values: np.ndarray | None = None) -> Any:
        """Compute the gradient of the trainable parameters, from one for each token; evaluated.

        Args:
            logps: [tokens], the loss's gradient with respect to `CompletionLogps.token_logps`.
            values: [tokens], with respect to `CompletionLogps.token_values`, if there are any.

        Returns:
            A tree like the model's trainable parameters.
        """
        assert self.terms.logp_grads is not None
        upstream_grad = mx.array(logps.astype(np.float32))[:, None] * self.terms.logp_grads.astype(mx.float32)
        if values is not None:  # the last column of the hidden states; no log-prob depends on it
            value_grad = mx.array(values.astype(np.float32))[:, None]
            upstream_grad = mx.concatenate([upstream_grad[:, :-1], value_grad], axis=1)
        return self._run_backward(upstream_grad)

    def _run_backward(self, upstream_grad: mx.array) -> Any:
        """The gradient of the trainable parameters from that of the hidden states; evaluated."""
        gradients = self.backward(upstream_grad)
        # From the last block to the first, in the order of the backward pass: evaluated all at once, mlx keeps much of
        # every block until the end.
        for _, tensors in groupby(reversed(tree_flatten(gradients)), key=lambda named: block_prefix(named[0])):
            check_stop()
            mx.eval([tensor for _, tensor in tensors])
        return gradients
