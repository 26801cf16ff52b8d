"""A loss of your own: mlx-dpo train --loss examples/focal.py:focal"""

import mlx.core as mx


def focal(pairs, *, beta=0.1, focus=2.0):
    """DPO with a lower weight for pairs that the policy is surer of."""
    z = beta * pairs.margins  # chosen - rejected of log pi - log pi_ref; [pairs]
    return mx.sigmoid(-z) ** focus * mx.logaddexp(0, -z)  # one loss per pair
