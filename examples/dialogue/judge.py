"""A rule for dialogues, for trying the recipe without a language model as judge.

    mlx-dpo evaluate ... --generate 64 --judge examples/dialogue/judge.py:on_topic

An answer gets a point if it has at least eight words, a point if it takes up a content word of the last message, and
loses one if a third or more of its words repeat. It does not understand anything: use a language model with rubric.txt,
or the reward model of the recipe, for a result that you report.
"""

import re

SHORTEST = 8  # words
WORD = re.compile(r"[a-z']{4,}")


def on_topic(prompt: str, answer: str) -> float:
    """From -1 to 2."""
    words = re.findall(r"[a-z']+", answer.lower())
    last_message = re.split(r"\b(?:Human|user): ", prompt)[-1].lower()
    shared = set(WORD.findall(answer.lower())) & set(WORD.findall(last_message))
    repeats = len(words) > 0 and len(set(words)) <= 2 / 3 * len(words)
    return float(len(words) >= SHORTEST) + float(bool(shared)) - float(repeats)
