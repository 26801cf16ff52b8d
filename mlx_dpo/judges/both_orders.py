"""Verdicts over both orders of the completions, for judges that the order may sway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlx_dpo.judges.judge import Comparison, Judge


class OrderedVerdicts(NamedTuple):
    """Verdicts on comparisons, the same whichever completion comes first.

    Attributes:
        win_rates: [comparisons] from 0, the second completion wins, to 1, the first wins; the mean over both orders.
            NaN if a verdict could not be read.
        order_flipped: [comparisons] whether the winner depends on the order.
    """

    win_rates: np.ndarray
    order_flipped: np.ndarray


def judge_both_orders(judge: Judge, comparisons: Sequence[Comparison]) -> OrderedVerdicts:
    """Have a judge compare completions, in both orders if the order may matter to it.

    Equal completions are ties, without asking the judge.

    Args:
        judge: gives the verdicts.
        comparisons: the completions.

    Raises:
        UserError: the judge fails.
    """
    win_rates, order_flipped = np.full(len(comparisons), 0.5), np.zeros(len(comparisons), bool)
    differ = [i for i, comparison in enumerate(comparisons) if comparison.first != comparison.second]
    verdicts = np.array(judge.verdicts(requests(judge, [comparisons[i] for i in differ])), np.float64)
    first = verdicts[: len(differ)]
    second = 1 - verdicts[len(differ) :] if judge.order_sensitive else first
    win_rates[differ] = (first + second) / 2
    order_flipped[differ] = np.sign(first - 0.5) * np.sign(second - 0.5) < 0
    return OrderedVerdicts(win_rates, order_flipped)


def requests(judge: Judge, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """What a judge gets for comparisons of different completions: these, then their other orders if those matter."""
    swapped = [comparison.swapped for comparison in comparisons] if judge.order_sensitive else []
    return [*comparisons, *swapped]
