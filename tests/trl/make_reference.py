"""Makes the numbers that mlx-dpo's losses are held to: what TRL's trainers do with the same model, adapter and pairs.

Run once and committed with what it wrote; torch and TRL are not dependencies of the project. To make it all again
(Python 3.11, CPU build of torch; `trl==1.16.0 peft==0.21.2 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0`):

    python -m venv /tmp/trlvenv
    /tmp/trlvenv/bin/pip install torch==2.13.0
    /tmp/trlvenv/bin/pip install torch==2.13.0 "trl==1.16.*" peft transformers datasets accelerate
    /tmp/trlvenv/bin/python tests/trl/make_reference.py

It writes, beside itself and all from one seed:

    checkpoint/                 a tiny random float32 Qwen3 with a byte-level BPE tokenizer and a ChatML template
    pairs.jsonl                 eight conversational preference pairs
    raw_pairs.jsonl             last prompt turns and answers of the same, as bare texts
    adapter/                    a LoRA adapter in mlx-lm's format, with non-zero B
    reference.json              versions, settings, token ids, and every step of every run in RUNS
    final_adapters.safetensors  the adapter after the run "sigmoid", under mlx-lm's names

DPOTrainer makes most runs; CPOTrainer (`cpo`, `simpo`) and ORPOTrainer, which take no reference, the last ones.

Things about TRL 1.16 that shape this file:

- The reference policy is the base model for an adapter that TRL makes itself (`peft_config`), and a frozen copy of the
  initial adapter for a model that already is a PeftModel. `Run.reference` chooses: "base" lets TRL make the adapter and
  then overwrites its tensors, "initial" hands TRL the finished PeftModel.
- `label_smoothing` is ignored by the loss "sigmoid"; only robust, exo_pair, aot and aot_unpaired read it. Conservative
  DPO, (1 - e) L(d) + e L(-d), is the mix 2 (1 - e) sigmoid - (1 - 2e) robust, which is how "label_smoothing" makes it.
- The Trainer shuffles unless told otherwise; with "sequential" sampling, per-pair numbers are in the file's order.
- CPOTrainer and ORPOTrainer tokenize in a way of their own: the end-of-text token stands behind the newline that the
  template puts there. They get the same pairs as bare texts (raw_pairs.jsonl), where all agree.
- ORPOTrainer's likelihood term is over the prompt, too, so its loss without that term is kept, and for one step.
"""

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

HERE = Path(__file__).parent
SEED = 20
STEPS, FEW_STEPS = 12, 3
RANK, SCALE = 4, 2.0
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "vocab_size": 300,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
MLX_KEYS = [f"self_attn.{name}" for name in ATTENTION] + [f"mlp.{name}" for name in MLP]

# What every run shares, in TRL's names; a run's own options go on top.
SETTINGS: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "beta": 0.1,
    "label_smoothing": 0.0,
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "train_sampling_strategy": "sequential",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "optim": "adamw_torch",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": None,
    "disable_dropout": True,
    "gradient_checkpointing": False,
    "bf16": False,
    "seed": SEED,
}


@dataclass
class Run:
    """One training run: which policy is the reference ("base" or "initial"), and its DPOConfig options."""

    reference: str = "base"
    options: dict[str, Any] = field(default_factory=dict)


RUNS = {
    "sigmoid": Run(),
    "sigmoid_initial": Run(reference="initial"),
    # Conservative DPO (see the top): (1 - 0.1) L(d) + 0.1 L(-d)
    "label_smoothing": Run(
        options={"loss_type": ["sigmoid", "robust"], "loss_weights": [1.8, -0.8], "label_smoothing": 0.1}
    ),
    "robust": Run(options={"loss_type": ["robust"], "label_smoothing": 0.1}),
}


def few_steps(*loss_types: str, **options: Any) -> Run:
    return Run(options={"loss_type": list(loss_types), "max_steps": FEW_STEPS, **options})


RUNS |= {
    "robust_3": few_steps("robust", label_smoothing=0.3, beta=0.5),
    "hinge": few_steps("hinge"),
    "ipo": few_steps("ipo"),
    "ipo_beta": few_steps("ipo", beta=2.0),
    "exo_pair": few_steps("exo_pair", label_smoothing=1e-3),
    "exo_pair_smooth": few_steps("exo_pair", label_smoothing=0.2, beta=0.5),
    "nca_pair": few_steps("nca_pair"),
    "bco_pair": few_steps("bco_pair", beta=0.3),
    "sppo_hard": few_steps("sppo_hard"),
    "aot": few_steps("aot"),
    "aot_smooth": few_steps("aot", label_smoothing=0.2, beta=0.5),
    "aot_unpaired": few_steps("aot_unpaired"),
    "aot_unpaired_smooth": few_steps("aot_unpaired", label_smoothing=0.2, beta=0.5),
    "apo_zero": few_steps("apo_zero"),
    "apo_down": few_steps("apo_down", beta=0.3),
    "discopop": few_steps("discopop"),
    "discopop_tau": few_steps("discopop", discopop_tau=0.5, beta=0.5),
    "sft": few_steps("sft"),
    "sigmoid_norm": few_steps("sigmoid_norm", beta=5.0),
    "mpo": few_steps("sigmoid", "bco_pair", "sft", loss_weights=[0.8, 0.2, 1.0]),
    "sum": few_steps("aot", "ipo", "apo_zero", loss_weights=[1.0, 0.01, 0.5]),
    "forward_kl": few_steps("sigmoid", f_divergence_type="forward_kl"),
    "js": few_steps("sigmoid_norm", f_divergence_type="js_divergence", beta=5.0),
    "alpha": few_steps("hinge", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3),
    "alpha_half": few_steps("ipo", "sft", f_divergence_type="alpha_divergence"),
}

# Runs of the trainers without a reference: which, and its options.
FREE_RUNS: dict[str, tuple[type, dict[str, Any]]] = {
    "cpo": (CPOConfig, {"loss_type": "sigmoid", "max_steps": FEW_STEPS}),
    "cpo_options": (
        CPOConfig,
        {"loss_type": "sigmoid", "max_steps": FEW_STEPS, "cpo_alpha": 0.3, "label_smoothing": 0.1, "beta": 0.4},
    ),
    "simpo": (CPOConfig, {"loss_type": "simpo", "max_steps": FEW_STEPS, "cpo_alpha": 0.0, "beta": 2.0}),
    "simpo_options": (
        CPOConfig,
        {"loss_type": "simpo", "max_steps": FEW_STEPS, "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 1.4}
        | {"label_smoothing": 0.1},
    ),
    "orpo": (ORPOConfig, {"max_steps": 1}),
    "orpo_beta": (ORPOConfig, {"max_steps": 1, "beta": 0.7}),
}


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A prompt: user and assistant take turns, after the system message if there is one."""
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return ([{"role": "system", "content": system}] if system else []) + turns


PAIRS = [
    (chat("What is the capital of France?"), "The capital of France is Paris.", "It may be Lyon, I think, or Nice."),
    (chat("Is 7 a prime number? Answer with one word."), "Yes", "No, it is not a prime number, since 7 = 2 * 3 + 1."),
    (
        chat("Name three colours.", system="You are a terse assistant."),
        "Red, green, blue.",
        "There are so many colours that one could name! Some that come to mind are red, and green, and also blue.",
    ),
    (
        chat("Hi!", "Hello. What can I do for you?", "Tell me a joke about a cat."),
        "Why did the cat sit on the computer? To keep an eye on the mouse.",
        "No.",
    ),
    (
        chat("Translate to German: good morning", "Guten Morgen", "And: thank you", system="You translate."),
        "Danke schön",
        "Danke, and that is how one would say it — schön!",
    ),
    (chat("Write a line of Python that prints 1 to 3."), "for i in range(1, 4):\n    print(i)", "print 1 2 3"),
    (
        chat("Why is the sky blue? Please explain it so that a child of six would understand what happens up there."),
        "Sunlight is made of all the colours. The air scatters the blue part of it more than the red part, and so "
        "blue light reaches your eyes from everywhere in the sky.",
        "The sky is blue because of the sea.",
    ),
    (chat("2 + 2 ="), "4", "5"),
]


def write_pairs() -> list[dict[str, Any]]:
    def answer(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [{"prompt": prompt, "chosen": answer(c), "rejected": answer(r)} for prompt, c, r in PAIRS]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (HERE / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return rows


def write_raw_pairs() -> list[dict[str, str]]:
    rows = [{"prompt": prompt[-1]["content"], "chosen": f" {c}", "rejected": f" {r}"} for prompt, c, r in PAIRS]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (HERE / "raw_pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return rows


def write_tokenizer(folder: Path, rows: list[dict[str, Any]]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [m["content"] for row in rows for part in ("prompt", "chosen", "rejected") for m in row[part]]
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_checkpoint(folder: Path, rng: np.random.Generator) -> None:
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Qwen3ForCausalLM(Qwen3Config(**CONFIG)).named_parameters()}
    weights = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        weights[name] = 1 + np.float32(0.1) * noise if "norm" in name else np.float32(0.3) * noise
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def write_adapter(folder: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The initial adapter in mlx-lm's format and names; returns its tensors."""
    model = Qwen3ForCausalLM.from_pretrained(HERE / "checkpoint")
    tensors = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for key in MLX_KEYS:
            name = f"model.layers.{layer}.{key}"
            outputs, inputs = model.get_submodule(name).weight.shape
            tensors[f"{name}.lora_a"] = rng.normal(0, inputs**-0.5, (inputs, RANK)).astype(np.float32)
            tensors[f"{name}.lora_b"] = rng.normal(0, 0.05, (RANK, outputs)).astype(np.float32)
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    config = {
        "fine_tune_type": "lora",
        "num_layers": CONFIG["num_hidden_layers"],
        "lora_parameters": {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": MLX_KEYS},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tensors


def peft_adapter(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The trained ("default") adapter's parameters under mlx-lm's names; each is the transpose of mlx-lm's."""
    found = {}
    for name, parameter in model.named_parameters():
        if name.endswith(".default.weight"):
            name = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            found[name.replace("lora_A", "lora_a").replace("lora_B", "lora_b")] = parameter
    return found


def set_adapter(model: PeftModel, tensors: dict[str, np.ndarray]) -> None:
    parameters = peft_adapter(model)
    assert parameters.keys() == tensors.keys()
    for name, parameter in parameters.items():
        parameter.data.copy_(torch.from_numpy(tensors[name].T.copy()))


class Recorder(DPOTrainer):
    """TRL's trainer, keeping every step's numbers unrounded, and each forward pass's sums of completion log-probs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[dict[str, float]] = []
        self.sums: list[list[float]] = []  # per step: the policy's pass, then the reference's; chosen, then rejected
        self.model.register_forward_hook(lambda _module, _args, out: self.sums.append(out.log_probs.sum(1).tolist()))

    def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.step_loss = super().compute_loss(*args, **kwargs)
        return self.step_loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)  # TRL adds its metrics to `logs`
        if "grad_norm" in logs:
            metrics = {k: v for k, v in logs.items() if k not in ("loss", "epoch", "learning_rate")}
            self.steps.append({"loss": self.step_loss.item(), **metrics})


def make_trainer(run: Run, rows: list[dict[str, Any]], adapter: dict[str, np.ndarray]) -> Recorder:
    model = Qwen3ForCausalLM.from_pretrained(HERE / "checkpoint", dtype=torch.float32)
    lora = LoraConfig(
        r=RANK, lora_alpha=int(RANK * SCALE), lora_dropout=0.0, target_modules=ATTENTION + MLP, task_type="CAUSAL_LM"
    )
    if run.reference == "initial":
        model, lora = get_peft_model(model, lora), None
        set_adapter(model, adapter)
    quiet = {"output_dir": "/tmp/trl-reference", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    config = DPOConfig(**SETTINGS | run.options, **quiet, logging_steps=1, use_cpu=True)
    tokenizer = AutoTokenizer.from_pretrained(HERE / "checkpoint")
    data = Dataset.from_list(rows)
    trainer = Recorder(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    set_adapter(trainer.model, adapter)
    used = "initial" if "ref" in trainer.model.peft_config else "base"
    assert trainer.ref_model is None and used == run.reference, f"TRL's reference policy is {used}"
    return trainer


def report(run: Run, trainer: Recorder) -> dict[str, Any]:
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


class CPORecorder(Unrounded, CPOTrainer):
    """CPOTrainer, see `Unrounded`."""


class ORPORecorder(Unrounded, ORPOTrainer):
    """ORPOTrainer, see `Unrounded`."""


def run_without_reference(
    config_type: type, options: dict[str, Any], rows: list[dict[str, str]], adapter: dict[str, np.ndarray]
) -> dict[str, Any]:
    model = Qwen3ForCausalLM.from_pretrained(HERE / "checkpoint", dtype=torch.float32)
    lora = LoraConfig(
        r=RANK, lora_alpha=int(RANK * SCALE), lora_dropout=0.0, target_modules=ATTENTION + MLP, task_type="CAUSAL_LM"
    )
    shared = {k: v for k, v in SETTINGS.items() if k not in ("loss_type", "label_smoothing", "max_length")}
    quiet = {"output_dir": "/tmp/trl-reference", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    config = config_type(**shared | {"max_length": 1024} | options, **quiet, logging_steps=1, use_cpu=True)
    recorder = CPORecorder if config_type is CPOConfig else ORPORecorder
    tokenizer = AutoTokenizer.from_pretrained(HERE / "checkpoint")
    trainer = recorder(
        model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora
    )
    set_adapter(trainer.model, adapter)
    trainer.train()
    columns = trainer.train_dataset.select_columns(["prompt_input_ids", "chosen_input_ids", "rejected_input_ids"])
    return {"options": options, "steps": trainer.steps, "pairs": columns.to_list()}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(SEED)
    for folder in ("checkpoint", "adapter"):
        (HERE / folder).mkdir(exist_ok=True)
    rows, raw_rows = write_pairs(), write_raw_pairs()
    write_tokenizer(HERE / "checkpoint", rows)
    write_checkpoint(HERE / "checkpoint", rng)
    adapter = write_adapter(HERE / "adapter", rng)

    packages = ("torch", "trl", "peft", "transformers", "datasets", "accelerate", "tokenizers")
    result: dict[str, Any] = {"versions": {name: version(name) for name in packages}, "settings": SETTINGS, "runs": {}}
    for name, run in RUNS.items():
        trainer = make_trainer(run, rows, adapter)
        trainer.train()
        assert len(trainer.steps) == run.options.get("max_steps", STEPS)
        result["runs"][name] = report(run, trainer)
        if name == "sigmoid":
            columns = trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
            result["pairs"] = columns.to_list()
            final = {key: p.detach().numpy().T.copy() for key, p in peft_adapter(trainer.model).items()}
            save_file(final, HERE / "final_adapters.safetensors", metadata={"format": "mlx"})
    for name, (config_type, options) in FREE_RUNS.items():
        result["runs"][name] = run_without_reference(config_type, options, raw_rows, adapter)
        result["raw_pairs"] = result["runs"][name].pop("pairs")
    (HERE / "reference.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
