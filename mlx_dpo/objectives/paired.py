"""Objectives on pairs. Each takes log-ratios against the reference and gives one loss a pair.

A log-ratio is log pi(y|x) - log pi_ref(y|x), summed over the completion's tokens, in nats; shape [pairs], float32.
beta times it is the completion's implicit reward (Rafailov et al. 2023, arXiv 2305.18290, eq. 5 without its constant).
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx


class PairedObjective(Protocol):
    """What an objective on pairs looks like."""

    def __call__(
        self, chosen_logratios: mx.array, rejected_logratios: mx.array, *, beta: float, label_smoothing: float
    ) -> mx.array:
        """Losses, shape [pairs]."""
        ...


def sigmoid(
    chosen_logratios: mx.array, rejected_logratios: mx.array, *, beta: float, label_smoothing: float = 0.0
) -> mx.array:
    """DPO: -log sigmoid(beta (r_w - r_l)), Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.

    With `label_smoothing` e > 0 it is conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"):
    -(1 - e) log sigmoid(z) - e log sigmoid(-z).

    Args:
        chosen_logratios, rejected_logratios: [pairs], nats.
        beta: strength of the pull to the reference, above 0.
        label_smoothing: assumed share of flipped pairs, from 0 to below 0.5.

    Returns:
        Losses, [pairs].
    """
    z = beta * (chosen_logratios - rejected_logratios)
    return (1 - label_smoothing) * mx.logaddexp(0, -z) + label_smoothing * mx.logaddexp(0, z)
