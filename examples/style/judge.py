"""Whose manner an answer has, yours or the model's: a judge for `mlx-dpo evaluate`.

    mlx-dpo evaluate ... --generate 24 --judge examples/style/judge.py:like_mine

Every three characters in a row are counted in the pairs of runs/style/pairs.jsonl (or of the file that STYLE_PAIRS
names). An answer's score is the mean, over its own, of the log of how much likelier they are in your answers than in
the model's: above 0 it reads more like you. Dividing by the length keeps long answers from winning by length alone. It
measures the surface: words, punctuation, layout. It does not know whether an answer is right.
"""

import functools
import json
import math
import os
from collections import Counter
from pathlib import Path


def trigrams(text: str) -> list[str]:
    """All three characters in a row, with a space before and after the text."""
    padded = f" {text.strip().lower()} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


@functools.cache
def log_ratios() -> dict[str, float]:
    """The log-ratio of each three characters that occur, with one added to each count."""
    file = Path(os.environ.get("STYLE_PAIRS", "runs/style/pairs.jsonl"))
    pairs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    mine, models = (Counter(t for row in pairs for t in trigrams(row[name])) for name in ("chosen", "rejected"))
    known = mine.keys() | models.keys()
    base = math.log((models.total() + len(known)) / (mine.total() + len(known)))
    return {t: base + math.log((mine[t] + 1) / (models[t] + 1)) for t in known}


def like_mine(prompt: str, answer: str) -> float:
    """The mean log-ratio of an answer's characters; 0 for an empty one."""
    values = [log_ratios().get(t, 0.0) for t in trigrams(answer)]
    return sum(values) / len(values) if answer.strip() else 0.0
