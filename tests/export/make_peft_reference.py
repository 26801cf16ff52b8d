"""Makes what mlx-dpo's PEFT adapters are held to where torch and PEFT are not at hand.

Run once and committed with what it wrote. To make it again, in the environment of tests/trl/make_reference.py:

    python -c 'from mlx_dpo.export.peft.peft_export import export_peft as e; e(
               "tests/trl/checkpoint", "tests/trl/adapter", "tests/export/peft/exported",
               base_model="tests/trl/checkpoint")'     # with mlx-dpo; then, with PEFT:
    /tmp/trlvenv/bin/python tests/export/make_peft_reference.py

It writes, into peft/ beside itself, all from one seed and for tests/trl/checkpoint:

    NAME/             an adapter of each kind in WAYS, as PEFT saves it, with nothing left at its first values
    reference.json    versions, ids, and the logits of the model with each adapter, and with `exported`, at the last two
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent / "peft"
CHECKPOINT = Path(__file__).parents[1] / "trl" / "checkpoint"
IDS = [1, 77, 9, 120, 41, 8]
WAYS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear", "r": 2, "lora_alpha": 6},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "r": 3, "lora_alpha": 4, "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "up_proj"], "r": 2, "lora_alpha": 8, "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "layers_to_transform": [0],
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {"layers.0.self_attn.q_proj": 1, "up_proj": 4},
        "alpha_pattern": {"up_proj": 16, "layers.0.self_attn.q_proj": 1},
    },
}


def base() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


def write(name: str, options: dict[str, Any]) -> None:
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **options))
    for key, parameter in model.named_parameters():
        if "magnitude" in key:
            parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
        elif "lora_" in key:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(HERE / name)
    (HERE / name / "README.md").unlink()  # PEFT's empty card
    config = HERE / name / "adapter_config.json"
    reference = json.loads(config.read_text()) | {"base_model_name_or_path": "tests/trl/checkpoint"}
    reference["target_modules"] = sorted(reference["target_modules"])  # a set, which has no order of its own
    config.write_text(json.dumps(reference, indent=2) + "\n")


def logits(adapter: Path) -> list[list[float]]:
    with torch.no_grad():
        return PeftModel.from_pretrained(base(), adapter)(torch.tensor([IDS])).logits[0, -2:].tolist()


def main() -> None:
    torch.manual_seed(20)
    for name, options in WAYS.items():
        write(name, options)
    packages = ("torch", "peft", "transformers")
    result = {
        "versions": {name: version(name) for name in packages},
        "ids": IDS,
        "logits": {name: logits(HERE / name) for name in [*WAYS, "exported"]},
    }
    (HERE / "reference.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
