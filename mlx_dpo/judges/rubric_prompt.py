"""What a language model is asked as a judge, and how its verdict is read.

After MT-Bench's pairwise judge (Zheng et al. 2023, arXiv 2306.05685).
"""

from __future__ import annotations

import re

from mlx_dpo.data.messages import Message
from mlx_dpo.judges.judge import Comparison

PAIRWISE_PROMPT = """\
You are an impartial judge. You see a question and two assistants' answers to it. Decide which answer is better: more \
helpful, correct, relevant and clear. Don't let the order of the answers, their length or the assistants' names sway \
you. Explain your reasons in a few sentences. Then end with your verdict in exactly this form: [[A]] if assistant A is \
better, [[B]] if assistant B is better, [[C]] for a tie.

[Question]
{question}

[The start of assistant A's answer]
{first}
[The end of assistant A's answer]

[The start of assistant B's answer]
{second}
[The end of assistant B's answer]"""

_VERDICT = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")
_VALUES = {"A": 1.0, "B": 0.0, "C": 0.5}


def judge_messages(comparison: Comparison) -> list[Message]:
    """The match as a chat model is asked about it."""
    asked = PAIRWISE_PROMPT.format(question=comparison.prompt_text, first=comparison.first, second=comparison.second)
    return [{"role": "user", "content": asked}]  # not every template has a system message


def parse_verdict(text: str) -> float | None:
    """The verdict in an answer, as of `Judge.verdicts`; None where there is none, or more than one, or another word.

    What a reasoning model thinks before its answer does not count.
    """
    _, ended, said = text.rpartition("</think>")
    found = set(_VERDICT.findall(said)) if ended or "<think>" not in said else set()
    return _VALUES.get(found.pop()) if len(found) == 1 else None
