"""The prompt that asks a language model for a verdict, and the parser of its answer.

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

_VERDICT_PATTERN = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")
_VERDICT_VALUES = {"A": 1.0, "B": 0.0, "C": 0.5}


def judge_messages(comparison: Comparison) -> list[Message]:
    """The rubric and a comparison as one user message; not every chat template takes a system message."""
    prompt = PAIRWISE_PROMPT.format(question=comparison.prompt_text, first=comparison.first, second=comparison.second)
    return [{"role": "user", "content": prompt}]


def parse_verdict(text: str) -> float | None:
    """Read the verdict in a judge's answer, ignoring the reasoning before </think>.

    Returns:
        1 for [[A]], 0 for [[B]], 0.5 for [[C]]; None if there is no verdict, an unknown one, or several that differ.
    """
    _, end_of_reasoning, answer = text.rpartition("</think>")
    if not end_of_reasoning and "<think>" in answer:
        return None
    verdicts = set(_VERDICT_PATTERN.findall(answer))
    return _VERDICT_VALUES.get(verdicts.pop()) if len(verdicts) == 1 else None
