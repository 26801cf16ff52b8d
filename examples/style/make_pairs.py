"""Pairs of your own answers, chosen, and of the model's answers to the same prompts, rejected.

    python examples/style/make_pairs.py ANSWERS SAMPLES OUTPUT

ANSWERS has rows with `prompt` and `completion`: what you wrote. SAMPLES is what `mlx-dpo sample --prompts ANSWERS`
wrote: a row for each prompt, in the same order, with `completions`. An answer of the model that is equal to yours, or
empty, makes no pair.
"""

import json
import sys
from pathlib import Path


def read_rows(file: str) -> list[dict[str, object]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


answers, samples = read_rows(sys.argv[1]), read_rows(sys.argv[2])
if [row["prompt"] for row in answers] != [row["prompt"] for row in samples]:
    sys.exit(f"{sys.argv[2]} has other prompts than {sys.argv[1]}: sample them again")
pairs = [
    {"prompt": own["prompt"], "chosen": own["completion"], "rejected": completion}
    for own, sampled in zip(answers, samples, strict=True)
    for completion in sampled["completions"]
    if completion.strip() not in ("", own["completion"].strip())
]
Path(sys.argv[3]).write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
print(f"{len(pairs)} pairs from {len(answers)} answers")
