"""Makes the numbers that on-policy training is compared with: TRL's online DPO, XPO and Nash-MD on given completions.

Run once and committed with its output, on_policy_reference.json, like make_reference.py, whose files it reads. TRL 1.13
is the last version with XPO and Nash-MD; its online DPO gives the numbers of TRL 1.16's. In make_reference.py's
environment:

    /tmp/trlvenv/bin/pip install --target /tmp/trl113 --no-deps trl==1.13.0
    /tmp/trlvenv/bin/pip install requests
    PYTHONPATH=/tmp/trl113 /tmp/trlvenv/bin/python tests/trl/make_on_policy_reference.py

The trainers run one training step. What they would sample is given: for each prompt two completions, which are answers
of pairs.jsonl with the end-of-sequence token, but for the longest, which is cut off before it. What they would have
judged is given too: a score for each completion.

Things about TRL that shape this file:

- XPO and Nash-MD take all tokens behind the last one of a completion without an end-of-sequence token for its own: only
  one as long as the longest can be cut off.
- Of Nash-MD, the second completion, the mixture's, is in the loss through its score only.
- Online DPO's "ipo" divides nothing by lengths, unlike DPOTrainer's, which mlx-dpo follows; so it is not run.
"""

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from inputs import ATTENTION, HERE, MLP, RANK, SCALE
from make_reference import peft_adapter, set_adapter
from peft import LoraConfig
from safetensors.numpy import load_file
from transformers import AutoTokenizer, Qwen3ForCausalLM
from trl.experimental.nash_md import NashMDConfig, NashMDTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl.experimental.xpo import XPOConfig, XPOTrainer

EOS, PAD = 2, 0
MISSING_EOS_PENALTY = 3.0
FIRST_SCORES = [1.5, -0.5, 2.0, 0.25, 0.0, 1.0, -2.0, 0.5]
SECOND_SCORES = [0.5, 0.75, 1.0, 1.25, -1.0, 2.5, -2.5, 0.0]


def padded(rows: list[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their mask, [rows, longest]."""
    width = max(map(len, rows))
    ids, masks = [], []
    for row in rows:
        padding = [PAD] * (width - len(row))
        ids.append(padding + row if left else row + padding)
        masks.append([0] * len(padding) + [1] * len(row) if left else [1] * len(row) + [0] * len(padding))
    return torch.tensor(ids), torch.tensor(masks)


class GivenOnlineDPO(OnlineDPOTrainer):
    """Online DPO on given completions and scores."""

    given: dict[str, Any]

    def _generate(self, model: Any, prompts: Any, images: Any = None) -> Any:
        completions = self.given["first"] + self.given["second"]
        return *padded(2 * self.given["prompts"], left=True), *padded(completions, left=False)

    def _calculate_rewards_from_functions(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(FIRST_SCORES + SECOND_SCORES)


class GivenCompletions:
    """Completions and scores are given, not sampled and judged."""

    given: dict[str, Any]

    def _generate_completions(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        prompts = padded(self.given["prompts"], left=True)[0]
        width = max(map(len, self.given["first"] + self.given["second"]))
        outputs = []
        for rows in (self.given["first"], self.given["second"]):
            completions = [row + [PAD] * (width - len(row)) for row in rows]
            outputs.append(torch.cat((prompts, torch.tensor(completions)), dim=1))
        return outputs[0], outputs[1]

    def _compute_rewards(self, model_data: Any, other_data: Any, context_length: int) -> Any:
        scores = torch.tensor(FIRST_SCORES), torch.tensor(SECOND_SCORES)
        for values, data in zip(scores, (model_data, other_data), strict=True):
            ends = (data["input_ids"][:, context_length:] == EOS).any(dim=1)
            values[~ends] -= MISSING_EOS_PENALTY
        return scores


class GivenXPO(GivenCompletions, XPOTrainer):
    """XPO on given completions and scores."""


class GivenNashMD(GivenCompletions, NashMDTrainer):
    """Nash-MD on given completions and scores."""


def run(trainer_type: Any, config_type: Any, given: dict[str, Any], **options: Any) -> dict[str, Any]:
    """One step's loss, gradient and statistics."""
    model = Qwen3ForCausalLM.from_pretrained(HERE / "checkpoint", dtype=torch.float32)
    lora = LoraConfig(
        r=RANK, lora_alpha=int(RANK * SCALE), lora_dropout=0.0, target_modules=ATTENTION + MLP, task_type="CAUSAL_LM"
    )
    config = config_type(
        output_dir="/tmp/trl-reference",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        max_length=1024,
        max_new_tokens=256,
        missing_eos_penalty=MISSING_EOS_PENALTY,
        per_device_train_batch_size=len(given["prompts"]),
        **options,
    )
    trainer = trainer_type(
        model,
        args=config,
        reward_funcs=lambda **_: [0.0],
        train_dataset=Dataset.from_list(given["rows"]),
        processing_class=AutoTokenizer.from_pretrained(HERE / "checkpoint"),
        peft_config=lora,
    )
    trainer.given = given
    set_adapter(trainer.model, load_file(HERE / "adapter" / "adapters.safetensors"))
    prompts = [row["prompt"] for row in given["rows"]]
    loss = trainer.training_step(trainer.model, {"prompt": prompts})
    gradients = {name: p.grad.numpy().T.astype(np.float64) for name, p in peft_adapter(trainer.model).items()}
    return {
        "options": options,
        "loss": loss.item(),
        "grad_norm": float(np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))),
        "gradients": {name: gradient.reshape(-1)[:4].tolist() for name, gradient in gradients.items()},
        "stats": {name: values[0] for name, values in trainer.stats.items() if values},
    }


def given_completions() -> dict[str, Any]:
    """Prompts and completions of pairs.jsonl as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(HERE / "checkpoint")
    rows = [json.loads(line) for line in (HERE / "pairs.jsonl").read_text().splitlines()]
    prompts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False) for row in rows
    ]
    answers = [[row[name][0]["content"] for name in ("chosen", "rejected")] for row in rows]
    completions = [[[*tokenizer.encode(text, add_special_tokens=False), EOS] for text in pair] for pair in answers]
    longest = max((ids for pair in completions for ids in pair), key=len)
    longest[-1:] = tokenizer.encode(" and", add_special_tokens=False)
    first, second = ([pair[i] for pair in completions] for i in (0, 1))
    assert all(ids[-1] == EOS for ids in first + second if ids is not longest)
    prompt_rows = [{"prompt": row["prompt"]} for row in rows]
    return {"rows": prompt_rows, "prompts": prompts, "first": first, "second": second}


def main() -> None:
    given = given_completions()
    packages = ("torch", "trl", "peft", "transformers")
    runs = {
        "sigmoid": run(GivenOnlineDPO, OnlineDPOConfig, given, beta=0.3, loss_type="sigmoid"),
        "xpo": run(GivenXPO, XPOConfig, given, beta=0.3, loss_type="sigmoid", alpha=0.01),
        "nash_md": run(GivenNashMD, NashMDConfig, given, beta=0.3),
    }
    result = {
        "versions": {name: version(name) for name in packages},
        "missing_eos_penalty": MISSING_EOS_PENALTY,
        **given,
        "scores": [FIRST_SCORES, SECOND_SCORES],
        "runs": runs,
    }
    (HERE / "on_policy_reference.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
