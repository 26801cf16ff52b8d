"""Train a reward model on the bundled pairs, and choose the best of eight answers to unseen questions by it.

    python examples/reward_model.py [FOLDER] [STEPS]

A hundred steps take a minute or two on two CPU cores. The same on the command line:

    mlx-dpo train --loss reward --model MODEL --data PAIRS --learning-rate 2e-4 --adapter-path reward-model
    mlx-dpo sample --model MODEL --prompts questions.txt --n 8 --output samples.jsonl
    mlx-dpo score --model MODEL --adapter-path reward-model --data samples.jsonl --output scores.jsonl
"""

import sys
import tempfile

import mlx_lm
import numpy as np

from mlx_dpo import RewardModel, SamplingParams, TrainConfig, best_of_n, sample_completions, train
from mlx_dpo.demo import MODEL, PAIRS, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent


def is_polite_and_right(question: str, answer: str) -> bool:
    """Whether an answer is what the pairs prefer, which the reward model has to find out."""
    return detect_manner(answer) == "polite" and is_fluent(question, answer)


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
config = TrainConfig(
    loss="reward",
    model=str(MODEL),
    data=str(PAIRS),
    adapter_path=f"{folder}/reward-model",
    iters=int(sys.argv[2]) if len(sys.argv) > 2 else 100,
    learning_rate=2e-4,
)
result = train(config)
print(f"held-out accuracy {result.after['rewards/accuracies']:.0%}, margin {result.after['rewards/margins']:.2f}")

model, tokenizer = mlx_lm.load(str(MODEL))
questions = [str(row["prompt"]) for row in load_pairs("valid")][:24]
turns = [[{"role": "user", "content": question}] for question in questions]
prompts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
sampled = sample_completions(model, tokenizer, prompts, SamplingParams(max_tokens=64, temperature=1.0), n=8)
answers = [[completion.text for completion in completions] for completions in sampled]
best = best_of_n(RewardModel.load(result.run), questions, answers)

rows = list(zip(questions, answers, best, strict=True))
all_shares = [is_polite_and_right(question, answer) for question, texts, _ in rows for answer in texts]
best_shares = [is_polite_and_right(question, texts[i]) for question, texts, i in rows if i is not None]
print(f"polite and right: {np.mean(all_shares):.0%} of all answers, {np.mean(best_shares):.0%} of the best of eight")
