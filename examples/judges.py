"""Judges by rule, for --judge of `label` and of `evaluate`: each is a function in a file, named as FILE.py:NAME.

    mlx-dpo label samples.jsonl --judge examples/judges.py:polite --output pairs.jsonl

A judge takes a prompt and an answer, and returns a score (or None for no verdict); or it takes a prompt and two
answers, and returns 1 if the first is better, 0 if the second is, 0.5 for a tie.
"""

import json
import re

POLITE = re.compile(r"\b(please|thank you|gladly|happy to|of course)\b", re.IGNORECASE)


def polite(prompt: str, answer: str) -> float:
    """How many polite phrases an answer has, up to three."""
    return float(min(len(POLITE.findall(answer)), 3))


def brief(prompt: str, answer: str) -> float:
    """Between 10 and 60 words is best; beyond that, each word more or less costs a point."""
    count = len(answer.split())
    return float(min(count - 10, 0) - max(count - 60, 0))


def valid_json(prompt: str, answer: str) -> float:
    """1 for an answer that is a JSON object, in a code block or not; else 0."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip())
    try:
        return float(isinstance(json.loads(text), dict))
    except ValueError:
        return 0.0


def shorter(prompt: str, first: str, second: str) -> float:
    """The shorter of two answers is better."""
    return 0.5 if len(first) == len(second) else float(len(first) < len(second))
