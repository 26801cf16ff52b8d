"""The default of each loss setting, read from the signatures of the losses."""

from __future__ import annotations

from collections import Counter


def loss_default_text(setting: str) -> str:
    """The default of a loss setting, such as "0.1 (simpo: 2)".

    Args:
        setting: a field of `TrainConfig` that losses take by keyword.

    Returns:
        The default that most losses share, with the exceptions by loss; empty if no loss takes it.
    """
    from mlx_dpo.objectives import LOSS_FUNCTIONS

    defaults = {name: loss.settings[setting] for name, loss in LOSS_FUNCTIONS.items() if setting in loss.settings}
    if not defaults:
        return ""
    common = Counter(defaults.values()).most_common(1)[0][0]
    exceptions = [f"{name}: {_short(value)}" for name, value in defaults.items() if value != common]
    return _short(common) + (f" ({', '.join(exceptions)})" if exceptions else "")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
