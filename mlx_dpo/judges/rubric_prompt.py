"""The prompt that asks a language model for a verdict, and the parser of its answer.

After MT-Bench's pairwise judge (Zheng et al. 2023, arXiv 2306.05685).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mlx_dpo.data.messages import Message
from mlx_dpo.errors import UserError, Where
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

_PLACEHOLDER = re.compile(r"\{(question|first|second)\}")
_VERDICT_PATTERN = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")
_VERDICT_VALUES = {"A": 1.0, "B": 0.0, "C": 0.5}


def read_rubric(path: str | Path) -> str:
    """Read a prompt from a text file in which {question}, {first} and {second} stand for the texts to judge.

    Raises:
        UserError: it can't be read, a placeholder is missing, or it does not ask for [[A]] and [[B]].
    """
    where, hint = Where(str(path)), "It has {question}, {first} and {second}, and asks for [[A]], [[B]] or [[C]]."
    try:
        rubric = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't be read: {error}", where=where, field="rubric", hint=hint) from None
    required = ("{question}", "{first}", "{second}", "[[A]]", "[[B]]")
    missing = [text for text in required if text not in rubric]
    if missing:
        message = f"the rubric does not contain {' or '.join(missing)}"
        raise UserError(message, where=where, field="rubric", hint=hint)
    return rubric


def judge_messages(comparison: Comparison, rubric: str | None = None) -> list[Message]:
    """The rubric and a comparison as one user message; not every chat template takes a system message.

    Args:
        comparison: what to judge.
        rubric: a text with {question}, {first} and {second}; None: `PAIRWISE_PROMPT`.
    """
    texts = {"question": comparison.prompt_text, "first": comparison.first, "second": comparison.second}
    prompt = _PLACEHOLDER.sub(lambda match: texts[match[1]], rubric or PAIRWISE_PROMPT)
    return [{"role": "user", "content": prompt}]


def rubric_digest(rubric: str | None) -> str:
    """A digest of the prompt that a judge uses."""
    return hashlib.blake2b((rubric or PAIRWISE_PROMPT).encode(), digest_size=16).hexdigest()


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
