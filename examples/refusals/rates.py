"""How many safe and how many unsafe prompts are refused, before and after training.

    python examples/refusals/rates.py BEFORE AFTER [--json]

BEFORE and AFTER are files of `mlx-dpo sample` with the same prompts, whose rows have a `category` as their prompts had.
Rates have 95% intervals (Wilson's), and the change of the same prompts has a permutation test. What counts as a
refusal, and what that misses, is in judge.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from judge import refuses

from mlx_dpo.utils.statistics import paired_test, win_rate_interval


def read_rates(file: Path) -> dict[str, np.ndarray]:
    """For each category the share of refusals among each prompt's completions, [prompts]."""
    rates: dict[str, list[float]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        share = float(np.mean([refuses(answer) for answer in row["completions"]]))
        rates.setdefault(str(row.get("category", "all")), []).append(share)
    return {category: np.array(values) for category, values in sorted(rates.items())}


def compare(before: Path, after: Path) -> dict[str, dict[str, Any]]:
    """The refusal rates of each category in both files, with intervals."""
    first, second = read_rates(before), read_rates(after)
    result = {}
    for category, shares in first.items():
        result[category] = {
            "prompts": len(shares),
            "before": float(shares.mean()),
            "before_interval": list(win_rate_interval(shares)),
            "after": float(second[category].mean()),
            "after_interval": list(win_rate_interval(second[category])),
            "p_value": paired_test(shares, second[category]).p,
        }
    return result


def main() -> None:
    """Print a line for each category, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rates = compare(options.before, options.after)
    if options.json:
        print(json.dumps(rates))
        return
    for category, row in rates.items():
        shown = [
            f"{row[name]:.0%} [{row[name + '_interval'][0]:.0%}, {row[name + '_interval'][1]:.0%}]"
            for name in ("before", "after")
        ]
        change = f"{shown[0]} before, {shown[1]} after, p = {row['p_value']:.2g}"
        print(f"{category}: {row['prompts']} prompts, refused {change}")


if __name__ == "__main__":
    main()
