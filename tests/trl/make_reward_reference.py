"""Makes the numbers that the loss "reward" is compared with: TRL's RewardTrainer on the same model, adapter and pairs.

Run once and committed with its output, in the environment that make_reference.py describes:

    /tmp/trlvenv/bin/python tests/trl/make_reward_reference.py

It reads what make_reference.py wrote, and writes beside itself:

    reward_head.safetensors     the head that every run starts from, under mlx-dpo's name
    reward_reference.json       versions, settings, token ids, and every step of every run below

Things about TRL 1.16 that shape this file:

- The reward is read at the last token: of conversations ("chat"), the template's line break after the end of the turn;
  of bare texts, the end-of-text token that RewardTrainer adds to them.
- transformers finds the last token by the padding token, which RewardTrainer takes from the tokenizer.
- The head is drawn by transformers from the seed; PEFT's `modules_to_save` trains a copy of it, which is overwritten
  here, so that all runs, and mlx-dpo's, begin with the same one.
- RewardConfig sets bf16 where the machine has it, gradient checkpointing, and a cap on the length: turned off in
  SETTINGS, as for the other trainers.
- `max_grad_norm` clips adapter and head together; the logged norm is that before clipping.
"""

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from inputs import ATTENTION, HERE, MLP, RANK, SCALE, SEED
from make_reference import Unrounded, configure, peft_adapter
from peft import LoraConfig
from runs import SETTINGS, STEPS
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, Qwen3ForSequenceClassification
from trl import RewardConfig, RewardTrainer

MARGINS = [0.5, 0.0, 1.0, 0.25, 0.0, 2.0, 0.75, 0.1]
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "centered": {"center_rewards_coefficient": 0.05},
    "margins": {"center_rewards_coefficient": 0.01, "with_margins": True},
    "chat": {},
}


class RewardRecorder(Unrounded, RewardTrainer):
    """RewardTrainer, see `Unrounded`; keeps each step's rewards, too: of the chosen completions, then of the others."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss, outputs = RewardTrainer.compute_loss(self, model, inputs, return_outputs=True)
        self.step_loss, self.step_rewards = loss, outputs.logits.squeeze(-1).tolist()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "grad_norm" in logs:
            self.steps[-1]["rewards"] = self.step_rewards


def head_of(model: Any) -> torch.nn.Parameter:
    """The trained copy of the head, [1, hidden]."""
    (head,) = [p for name, p in model.named_parameters() if name.endswith("score.modules_to_save.default.weight")]
    return head


def run(rows: list[dict[str, Any]], head: np.ndarray, options: dict[str, Any]) -> dict[str, Any]:
    options = dict(options)
    if options.pop("with_margins", False):
        rows = [{**row, "margin": margin} for row, margin in zip(rows, MARGINS, strict=True)]
    model = Qwen3ForSequenceClassification.from_pretrained(HERE / "checkpoint", dtype=torch.float32, num_labels=1)
    lora = LoraConfig(
        r=RANK,
        lora_alpha=int(RANK * SCALE),
        lora_dropout=0.0,
        target_modules=ATTENTION + MLP,
        task_type="SEQ_CLS",
        modules_to_save=["score"],
    )
    trainer = RewardRecorder(
        model,
        args=configure(RewardConfig, **{"bf16": False, "max_length": None} | options),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(HERE / "checkpoint"),
        peft_config=lora,
    )
    adapter = load_file(HERE / "adapter" / "adapters.safetensors")
    parameters = {name: p for name, p in peft_adapter(trainer.model).items() if ".lora_" in name}
    assert parameters.keys() == adapter.keys()
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.from_numpy(adapter[name].T.copy()))
    head_of(trainer.model).data.copy_(torch.from_numpy(head))
    trainer.train()
    assert len(trainer.steps) == STEPS
    columns = trainer.train_dataset.select_columns(["chosen_ids", "rejected_ids"])
    final = head_of(trainer.model).detach().numpy().tolist()
    return {"options": options, "steps": trainer.steps, "final_head": final, "pairs": columns.to_list()}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    raw_rows, chat_rows = (
        [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
        for name in ("raw_pairs.jsonl", "pairs.jsonl")
    )
    hidden_size = json.loads((HERE / "checkpoint" / "config.json").read_text())["hidden_size"]
    head = np.random.default_rng(SEED + 1).normal(0, 0.02, (1, hidden_size)).astype(np.float32)
    save_file({"reward_head.weight": head}, HERE / "reward_head.safetensors", metadata={"format": "mlx"})
    packages = ("torch", "trl", "peft", "transformers", "datasets", "accelerate", "tokenizers")
    result: dict[str, Any] = {"versions": {name: version(name) for name in packages}, "settings": SETTINGS, "runs": {}}
    for name, options in RUNS.items():
        result["runs"][name] = run(chat_rows if name == "chat" else raw_rows, head, options)
    result["margins"] = MARGINS
    (HERE / "reward_reference.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
