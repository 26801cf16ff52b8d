"""The DPO paper's unlikelihood baseline, as a loss of one's own: --loss benchmarks/unlikelihood.py:unlikelihood"""


def unlikelihood(pairs, *, alpha=0.5):
    """Raise the likelihood of the chosen completion, and lower that of the rejected one by alpha as much."""
    return alpha * pairs.rejected_logps - pairs.chosen_logps
