"""Makes the numbers that mlx-dpo's losses are compared with: TRL's trainers on the same model, adapter and pairs.

Run once and committed with its output; torch and TRL are not dependencies of the project. To make it all again
(Python 3.11, CPU build of torch; `trl==1.16.0 peft==0.21.2 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0`):

    python -m venv /tmp/trlvenv
    /tmp/trlvenv/bin/pip install torch==2.13.0
    /tmp/trlvenv/bin/pip install torch==2.13.0 "trl==1.16.*" peft transformers datasets accelerate
    /tmp/trlvenv/bin/python tests/trl/make_reference.py

It writes, beside itself and all from one seed:

    checkpoint/                 a tiny random float32 Qwen3 with a byte-level BPE tokenizer and a ChatML template
    pairs.jsonl                 eight conversational preference pairs
    raw_pairs.jsonl             last prompt turns and answers of these pairs, as bare texts
    labelled.jsonl              nine of these answers, each on its own and labelled good or bad
    demonstrations.jsonl        the conversations with the chosen answers, as messages
    adapter/                    a LoRA adapter in mlx-lm's format, with non-zero B
    reference.json              versions, settings, token ids, and every step of every run below
    final_adapters.safetensors  the adapter after the run "sigmoid", under mlx-lm's names

inputs.py writes all but the last two; runs.py defines the runs. In reference.json, the runs are grouped:

    runs                        pairs: DPOTrainer; CPOTrainer (`cpo`, `simpo`) and ORPOTrainer, which take no reference
    weighting                   pairs, with tokens (`ld_alpha`) or whole pairs (`use_weighting`) weighted: DPOTrainer
    unpaired                    answers on their own, of the pairs and of labelled.jsonl: KTOTrainer
    demonstrations              answers to imitate: SFTTrainer

Things about TRL 1.16 that shape this file:

- The reference policy is the base model for an adapter that TRL makes itself (`peft_config`), and a frozen copy of the
  initial adapter for a model that already is a PeftModel. `Run.reference` chooses: "base" lets TRL make the adapter and
  then overwrites its tensors, "initial" hands TRL the finished PeftModel.
- `label_smoothing` is ignored by the loss "sigmoid"; only robust, exo_pair, aot and aot_unpaired read it. Conservative
  DPO, (1 - e) L(d) + e L(-d), is the mix 2 (1 - e) sigmoid - (1 - 2e) robust, which is how "label_smoothing" makes it.
- The Trainer shuffles by default; with "sequential" sampling, per-pair numbers are in the file's order.
- CPOTrainer and ORPOTrainer tokenize in a way of their own: the end-of-text token stands behind the newline that the
  template puts there. They get the same pairs as bare texts (raw_pairs.jsonl), where all agree.
- ORPOTrainer's likelihood term is over the prompt, too (`nll_loss`, over `nll_tokens` tokens): one step is run.
- `ld_alpha` is in logps/* and rewards/*, too: all that is made of a sequence's sum. It is not in the loss "sft", nor in
  the token counts that "ipo" and "sigmoid_norm" divide by, nor in `step_1_logps` here, which are plain sums.
- `use_weighting` multiplies every term of the loss by detached weights, and divides by the number of pairs. No metric
  reflects it. It multiplies in place, which torch refuses for "sft" (an expanded tensor) and for "hinge" (relu keeps
  its result), so that neither can be run.
- KTOTrainer makes of n pairs all n chosen answers, then all n rejected ones. Its KL term is the batch's mean, at least
  0, over each prompt with the answer of the row before it (the first with the last's), whatever that is; on
  labelled.jsonl it is below 0 at first. The weights of good and bad answers are not in what the loss is divided by.
"""

import json
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from inputs import (
    ATTENTION,
    HERE,
    LABELLED,
    MLP,
    RANK,
    SCALE,
    SEED,
    write_adapter,
    write_checkpoint,
    write_demonstrations,
    write_labelled,
    write_pairs,
    write_raw_pairs,
    write_tokenizer,
)
from peft import LoraConfig, PeftModel, get_peft_model
from runs import (
    DEMONSTRATIONS_RUN,
    FEW_STEPS,
    FREE_RUNS,
    RUNS,
    SETTINGS,
    STEPS,
    UNPAIRED_RUNS,
    WEIGHTING_RUNS,
    Run,
)
from safetensors.numpy import save_file
from transformers import AutoTokenizer, Qwen3ForCausalLM, Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


def peft_adapter(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The trained ("default") adapter's parameters under mlx-lm's names; each is the transpose of mlx-lm's."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if name.endswith(".default.weight"):
            name = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            tensors[name.replace("lora_A", "lora_a").replace("lora_B", "lora_b")] = parameter
    return tensors


def set_adapter(model: PeftModel, tensors: dict[str, np.ndarray]) -> None:
    parameters = peft_adapter(model)
    assert parameters.keys() == tensors.keys()
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.from_numpy(tensors[name].T.copy()))


class Unrounded:
    """Keeps every step's numbers unrounded, of a trainer that logs them as it goes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.steps: list[dict[str, float]] = []
        super().__init__(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.step_loss = super().compute_loss(*args, **kwargs)
        return self.step_loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if "grad_norm" in logs:
            metrics = {k: v for k, v in logs.items() if k not in ("loss", "epoch", "learning_rate")}
            self.steps.append({"loss": self.step_loss.item(), **metrics})


class Summing(Unrounded):
    """Keeps each forward pass's sums of completion log-probs, too: of each step the policy's, then the reference's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sums: list[list[float]] = []
        for model in (self.model, self.ref_model):  # with an adapter, the model is both
            if model is not None:
                model.register_forward_hook(lambda _module, _args, out: self.sums.append(out.log_probs.sum(1).tolist()))


class DPORecorder(Summing, DPOTrainer):
    """DPOTrainer, see `Summing`; every pass is over the chosen answers, then the rejected ones."""


class KTORecorder(Summing, KTOTrainer):
    """KTOTrainer, see `Summing`; each model's pass is preceded by that over the mismatched answers, if there is one."""


class SFTRecorder(Unrounded, SFTTrainer):
    """SFTTrainer, see `Unrounded`."""


class CPORecorder(Unrounded, CPOTrainer):
    """CPOTrainer, see `Unrounded`."""


class ORPORecorder(Unrounded, ORPOTrainer):
    """ORPOTrainer, see `Unrounded`; keeps how many tokens of each pair its likelihood term is over."""

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        self.nll_tokens = batch["chosen_attention_mask"][:, 1:].sum(1).tolist()  # none predicts the first token
        return super().concatenated_forward(model, batch)


def configure(config_type: type, **options: Any) -> Any:
    """SETTINGS as far as the trainer knows them, and the run's own options on top."""
    known = {field.name for field in fields(config_type)}
    shared = {k: v for k, v in SETTINGS.items() if k in known}
    quiet = {"output_dir": "/tmp/trl-reference", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    return config_type(**shared | options, **quiet, logging_steps=1, use_cpu=True)


def make_trainer(
    recorder: type[Trainer],
    config: Any,
    rows: list[dict[str, Any]],
    adapter: dict[str, np.ndarray],
    reference: str = "base",
) -> Any:
    """A trainer of the adapter, for the reference policy named."""
    model = Qwen3ForCausalLM.from_pretrained(HERE / "checkpoint", dtype=torch.float32)
    lora: LoraConfig | None = LoraConfig(
        r=RANK, lora_alpha=int(RANK * SCALE), lora_dropout=0.0, target_modules=ATTENTION + MLP, task_type="CAUSAL_LM"
    )
    if reference == "initial":
        model, lora = get_peft_model(model, lora), None
        set_adapter(model, adapter)
    tokenizer, data = AutoTokenizer.from_pretrained(HERE / "checkpoint"), Dataset.from_list(rows)
    trainer = recorder(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    set_adapter(trainer.model, adapter)
    used = "initial" if "ref" in trainer.model.peft_config else "base"
    assert getattr(trainer, "ref_model", None) is None and used == reference, f"TRL's reference policy is {used}"
    return trainer


def train_on_pairs(run: Run, rows: list[dict[str, Any]], adapter: dict[str, np.ndarray]) -> DPORecorder:
    trainer = make_trainer(DPORecorder, configure(DPOConfig, **run.options), rows, adapter, run.reference)
    trainer.train()
    assert len(trainer.steps) == run.options.get("max_steps", STEPS)
    return trainer


def report(run: Run, trainer: DPORecorder) -> dict[str, Any]:
    policy, reference = trainer.sums[:2]
    assert reference == trainer.sums[-1], "the reference policy moved"
    half = len(policy) // 2
    first = {
        "policy_chosen": policy[:half],
        "policy_rejected": policy[half:],
        "reference_chosen": reference[:half],
        "reference_rejected": reference[half:],
    }
    return {**asdict(run), "step_1_logps": first, "steps": trainer.steps}


def run_without_reference(
    config_type: type, options: dict[str, Any], rows: list[dict[str, Any]], adapter: dict[str, np.ndarray]
) -> dict[str, Any]:
    recorder = CPORecorder if config_type is CPOConfig else ORPORecorder
    trainer = make_trainer(recorder, configure(config_type, **{"max_length": 1024} | options), rows, adapter)
    trainer.train()
    columns = trainer.train_dataset.select_columns(["prompt_input_ids", "chosen_input_ids", "rejected_input_ids"])
    tokens = {"nll_tokens": trainer.nll_tokens} if config_type is ORPOConfig else {}
    return {"options": options, "steps": trainer.steps, **tokens, "pairs": columns.to_list()}


def run_unpaired(
    options: dict[str, Any], rows: list[dict[str, Any]], answers: list[dict[str, Any]], adapter: dict[str, np.ndarray]
) -> dict[str, Any]:
    """KTOTrainer's run, with all its `answers` (prompt_ids, completion_ids, label) in every batch."""
    options = {**options, "max_steps": FEW_STEPS, "per_device_train_batch_size": len(answers)}
    trainer = make_trainer(KTORecorder, configure(KTOConfig, **options), rows, adapter)
    with_kl = options["loss_type"] == "kto"
    before = [answers[i - 1]["completion_ids"] for i in range(len(answers))]
    expected = [a | {"KL_completion_ids": ids} if with_kl else a for a, ids in zip(answers, before, strict=True)]
    columns = trainer.train_dataset.select_columns([*expected[0]])
    assert columns.to_list() == expected, "KTOTrainer makes other tokens than DPOTrainer"
    trainer.train()
    passes = ["policy_kl", "policy", "reference_kl", "reference"] if with_kl else ["policy", "reference"]
    first, last = trainer.sums[: len(passes)], trainer.sums[-len(passes) :]
    assert first[len(passes) // 2 :] == last[len(passes) // 2 :], "the reference policy moved"
    return {"options": options, "step_1_logps": dict(zip(passes, first, strict=True)), "steps": trainer.steps}


def unpair(pairs: list[dict[str, list[int]]], which: list[tuple[int, bool]]) -> list[dict[str, Any]]:
    """The tokens of some of the pairs' answers: those of a pair's number and whether the chosen one is meant."""
    answers = []
    for i, label in which:
        completion = pairs[i]["chosen_ids" if label else "rejected_ids"]
        answers.append({"prompt_ids": pairs[i]["prompt_ids"], "completion_ids": completion, "label": label})
    return answers


def run_demonstrations(
    rows: list[dict[str, Any]], pairs: list[dict[str, list[int]]], adapter: dict[str, np.ndarray]
) -> dict[str, Any]:
    """SFTTrainer's run on the chosen answers; it trains the tokens that DPOTrainer has as `chosen_ids`."""
    rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    trainer = make_trainer(SFTRecorder, configure(SFTConfig, **DEMONSTRATIONS_RUN), rows, adapter)
    for made, pair in zip(trainer.train_dataset, pairs, strict=True):
        assert made["input_ids"] == pair["prompt_ids"] + pair["chosen_ids"]
        assert made["labels"] == [-100] * len(pair["prompt_ids"]) + pair["chosen_ids"]
    trainer.train()
    return {"options": DEMONSTRATIONS_RUN, "steps": trainer.steps}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(SEED)
    for folder in ("checkpoint", "adapter"):
        (HERE / folder).mkdir(exist_ok=True)
    rows, raw_rows = write_pairs(), write_raw_pairs()
    labelled, demonstrations = write_labelled(), write_demonstrations()
    write_tokenizer(HERE / "checkpoint", rows)
    write_checkpoint(HERE / "checkpoint", rng)
    adapter = write_adapter(HERE / "adapter", rng)

    packages = ("torch", "trl", "peft", "transformers", "datasets", "accelerate", "tokenizers")
    result: dict[str, Any] = {"versions": {name: version(name) for name in packages}, "settings": SETTINGS, "runs": {}}
    for name, run in RUNS.items():
        trainer = train_on_pairs(run, rows, adapter)
        result["runs"][name] = report(run, trainer)
        if name == "sigmoid":
            columns = trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
            result["pairs"] = columns.to_list()
            final = {key: p.detach().numpy().T.copy() for key, p in peft_adapter(trainer.model).items()}
            save_file(final, HERE / "final_adapters.safetensors", metadata={"format": "mlx"})
    for name, (config_type, options) in FREE_RUNS.items():
        result["runs"][name] = run_without_reference(config_type, options, raw_rows, adapter)
        result["raw_pairs"] = result["runs"][name].pop("pairs")

    result["weighting"] = {
        name: report(run, train_on_pairs(run, rows, adapter)) for name, run in WEIGHTING_RUNS.items()
    }
    pairs = result["pairs"]
    halves = [(i, label) for label in (True, False) for i in range(len(pairs))]
    result["labelled"], result["unpaired"] = unpair(pairs, LABELLED), {}
    for prefix, data, which in (("", rows, halves), ("labelled_", labelled, LABELLED)):
        for name, options in UNPAIRED_RUNS.items():
            result["unpaired"][prefix + name] = run_unpaired(options, data, unpair(pairs, which), adapter)
    result["demonstrations"] = run_demonstrations(demonstrations, pairs, adapter)
    (HERE / "reference.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
