"""Makes the numbers that PPO and RLOO are compared with: TRL's PPOTrainer and RLOOTrainer on given completions.

Run once and committed with its output, policy_gradient_reference.json, like make_reference.py, whose files it reads.
TRL 1.11 is the last version with PPO. In an environment like make_reference.py's, with trl==1.11.0:

    python tests/trl/make_policy_gradient_reference.py

The trainers take one training step. What they would sample is given: answers of pairs.jsonl. So are scores, and what
the policy had given when it sampled: log-probs and values that differ from the present ones, or all ratios would be 1.

Things about TRL that shape this file:

- PPOTrainer has a value model of its own. Here its body is the policy's, with the adapter in it, so that the gradient
  is that of a shared body.
- PPOTrainer gives the score one token after the end-of-sequence token, at the first token of padding, whose state has a
  value. mlx-dpo gives it at the last token, as does TRL where there is no padding. So all answers have the same length.
- RLOOTrainer has no such step, and takes whole answers. Its old log-probs are shifted by given numbers.
- PPOTrainer's head has no bias.
"""

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from inputs import ATTENTION, HERE, MLP, RANK, SCALE
from make_on_policy_reference import given_completions
from make_reference import peft_adapter, set_adapter
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoTokenizer, Qwen3ForCausalLM, Qwen3ForSequenceClassification
from trl import RLOOConfig, RLOOTrainer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

LENGTH = 9  # tokens of PPO's answers
SCORES = [1.5, -0.5, 2.0, 0.25, 0.0, 1.0, -2.0, 0.5]
SECOND_SCORES = [0.5, 0.75, 1.0, 1.25, -1.0, 2.5, -2.5, 0.0]
COMMON: dict[str, Any] = {
    "output_dir": "/tmp/trl-reference",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "learning_rate": 0.0,
    "max_grad_norm": 1e9,
}


def lora() -> LoraConfig:
    return LoraConfig(
        r=RANK, lora_alpha=int(RANK * SCALE), lora_dropout=0.0, target_modules=ATTENTION + MLP, task_type="CAUSAL_LM"
    )


def base_model() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(HERE / "checkpoint", dtype=torch.float32)


def first_values(model: Any) -> dict[str, Any]:
    """The gradients of the adapter, and their norm."""
    gradients = {name: p.grad.numpy().T.astype(np.float64) for name, p in peft_adapter(model).items()}
    return {
        "grad_norm": float(np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))),
        "gradients": {name: gradient.reshape(-1)[:4].tolist() for name, gradient in gradients.items()},
    }


def run_ppo(given: dict[str, Any], head: np.ndarray, **options: Any) -> dict[str, Any]:
    """One step of PPO: loss, gradients, statistics, advantages, and what was given."""
    tokenizer, generator = AutoTokenizer.from_pretrained(HERE / "checkpoint"), torch.Generator().manual_seed(5)
    policy = get_peft_model(base_model(), lora())
    set_adapter(policy, load_file(HERE / "adapter" / "adapters.safetensors"))
    value_model = Qwen3ForSequenceClassification.from_pretrained(HERE / "checkpoint", num_labels=1, dtype=torch.float32)
    value_model.model = policy.base_model.model.model  # one body, with the adapter in it
    value_model.score.weight.data.copy_(torch.from_numpy(head))
    reward_model = Qwen3ForSequenceClassification.from_pretrained(HERE / "checkpoint", num_labels=1)
    responses, count = torch.tensor(given["ppo_answers"]), len(given["prompts"])
    old_values = 0.3 * torch.randn(count, LENGTH, generator=generator)
    noise = 0.3 * torch.randn(count, LENGTH, 300, generator=generator)
    record: dict[str, Any] = {"options": options, "old_values": old_values.tolist()}
    order: list[int] = []

    def batch_generation(model: Any, queries: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[i for i in row.tolist() if i] for row in queries]
        order[:] = [given["prompts"].index(row) for row in rows]
        sequences = torch.cat([queries, responses[order]], dim=1)
        logits = ppo_trainer.forward(model, sequences, tokenizer.pad_token_id).logits[:, queries.shape[1] - 1 : -1]
        logits = logits.detach() / options["temperature"] + noise[order]
        logps = torch.log_softmax(logits, -1).gather(2, responses[order][:, :, None])[:, :, 0]
        record["old_logps"] = logps[torch.argsort(torch.tensor(order))].tolist()
        return sequences, logits

    def get_reward(model: Any, sequences: torch.Tensor, pad: int, context_length: int) -> tuple[Any, Any, Any]:
        values = torch.zeros(*sequences.shape, 1)
        values[:, context_length - 1 : -1, 0] = old_values[order]
        return values, torch.tensor(SCORES)[order], None

    whiten = ppo_trainer.masked_whiten

    def masked_whiten(values: Any, mask: Any, shift_mean: bool = True) -> Any:
        whitened = whiten(values, mask, shift_mean)
        if shift_mean:
            rows = torch.argsort(torch.tensor(order))
            record["raw_advantages"], record["advantages"] = values[rows].tolist(), whitened[rows].tolist()
        return whitened

    class RecordingTrainer(PPOTrainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            record["stats"] = {name: float(value) for name, value in logs.items() if "/" in name}

    for function in (batch_generation, get_reward, masked_whiten):
        setattr(ppo_trainer, function.__name__, function)
    config = PPOConfig(
        per_device_train_batch_size=count,
        num_ppo_epochs=1,
        total_episodes=count,
        response_length=LENGTH,
        num_sample_generations=0,
        save_strategy="no",
        **COMMON,
        **options,
    )
    prompts = Dataset.from_list([{"input_ids": ids} for ids in given["prompts"]])
    tokenizer.padding_side = "left"
    trainer = RecordingTrainer(
        config, tokenizer, policy, None, reward_model, prompts, value_model, eval_dataset=prompts
    )
    step = trainer.optimizer.step

    def recording_step(*args: Any, **kwargs: Any) -> Any:
        record.update(first_values(policy))
        record["head_gradient"] = value_model.score.weight.grad[0].tolist()
        return step(*args, **kwargs)

    trainer.optimizer.step = recording_step
    trainer.train()
    ppo_trainer.masked_whiten = whiten
    return record


def run_rloo(given: dict[str, Any], shifts: np.ndarray, **options: Any) -> dict[str, Any]:
    """One step of RLOO: loss, gradients, statistics, advantages."""
    record: dict[str, Any] = {"options": options, "shifts": shifts.tolist()}
    answers = [row for pair in zip(given["first"], given["second"], strict=True) for row in pair]
    scores = [score for pair in zip(SCORES, SECOND_SCORES, strict=True) for score in pair]

    class GivenTrainer(RLOOTrainer):
        """RLOO on given completions and scores."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            return answers

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return torch.tensor(scores)[:, None]

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            record["advantages"] = output["advantages"].tolist()
            output["old_logps"] = output["old_logps"] + torch.tensor(shifts.reshape(-1), dtype=torch.float32)
            return output

    config = RLOOConfig(
        per_device_train_batch_size=len(answers), num_generations=2, max_completion_length=256, **COMMON, **options
    )
    prompts = [{"prompt": row["prompt"]} for row in given["rows"]]
    trainer = GivenTrainer(
        base_model(),
        reward_funcs=lambda **_: [0.0],
        args=config,
        train_dataset=Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(HERE / "checkpoint"),
        peft_config=lora(),
    )
    set_adapter(trainer.model, load_file(HERE / "adapter" / "adapters.safetensors"))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs([row for row in prompts for _ in range(2)]))
    loss.backward()
    metrics = trainer._metrics["train"]
    return record | {
        "loss": loss.item(),
        **first_values(trainer.model),
        "clip_fraction": metrics["clip_ratio/region_mean"][0],
        "kl": metrics["kl"][0],
    }


def main() -> None:
    given = given_completions()
    pairs = zip(given["first"], given["second"], strict=True)
    given["ppo_answers"] = [(4 * [*first, *second])[:LENGTH] for first, second in pairs]
    random = np.random.default_rng(3)
    head = random.normal(0, 0.2, (1, 32)).astype(np.float32)
    shifts = random.normal(0, 0.2, (len(given["prompts"]), 2))
    given["head"], given["scores"] = head[0].tolist(), [SCORES, SECOND_SCORES]
    packages = ("torch", "trl", "peft", "transformers")
    runs = {
        "ppo": run_ppo(given, head, temperature=1.0),
        "ppo, other settings": run_ppo(
            given,
            head,
            temperature=0.7,
            kl_coef=0.2,
            gamma=0.97,
            lam=0.9,
            cliprange=0.1,
            cliprange_value=0.15,
            vf_coef=0.5,
            whiten_rewards=True,
        ),
        "rloo": run_rloo(given, shifts, beta=0.05, epsilon=0.2),
    }
    result = {"versions": {name: version(name) for name in packages}, **given, "runs": runs}
    (HERE / "policy_gradient_reference.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
