"""The card's section on usage. Each command is listed only if it works with the repository's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mlx_dpo.export.card.card_inputs import CardInputs
from mlx_dpo.export.card.markdown import code_block

_WITH_MLX_LM = "With [mlx-lm](https://github.com/ml-explore/mlx-lm), on a Mac (Linux: `pip install 'mlx-lm[cpu]'`):"
_UNQUANTIZED = "THE-UNQUANTIZED-MODEL"
_CHAT = """\
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Your question"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=256)[0]))"""


def usage_section(inputs: CardInputs) -> Iterator[str]:
    """The section's paragraphs and code blocks, with its heading."""
    yield "## Usage"
    kinds = _REWARD_MODELS if inputs.is_reward_model else _POLICIES
    yield from kinds[inputs.kind](inputs)


def _repo_id(inputs: CardInputs) -> str:
    return inputs.repo_id or f"USER/{inputs.name}"


def _base_model(inputs: CardInputs) -> str:
    return inputs.base.repo_id or f"PATH/TO/{inputs.base.display_name}".replace(" ", "-")


def _download(inputs: CardInputs) -> str:
    return f"hf download {_repo_id(inputs)} --local-dir {inputs.name}"


def _adapter(inputs: CardInputs) -> Iterator[str]:
    base, name, download = _base_model(inputs), inputs.name, _download(inputs)
    generate = f"mlx_lm.generate --model {base} --adapter-path {name} --prompt 'Your question'"
    yield _WITH_MLX_LM
    yield code_block(f"{download}\n{generate}")
    fuse = f"mlx-dpo fuse --model {base} --adapter-path {name} --dequantize --save-path {name}-fused"
    yield "With llama.cpp or LM Studio, after fusing it into its base model:"
    yield code_block(
        f"{download}\n{fuse}\n"
        f"mlx-dpo export --format gguf --model {name}-fused {name}.gguf   # then: llama-cli -m {name}.gguf\n"
        f"cp -r {name}-fused ~/.lmstudio/models/{_repo_id(inputs)}   # LM Studio on a Mac lists it under My Models"
    )
    yield from _export_to_peft(inputs, _peft_code)


def _export_to_peft(inputs: CardInputs, code: Callable[[str, str], str]) -> Iterator[str]:
    """How to export an adapter, and the code that then loads it; nothing for full fine-tuning."""
    if inputs.config.get("fine_tune_type", "lora") == "full":
        return
    name, base = inputs.name, _base_model(inputs)
    yield "With transformers and peft, on the base model, or on the one that it was quantized from:"
    export = (
        f"mlx-dpo export --format peft --model {base} --adapter-path {name} --base-model {_UNQUANTIZED} {name}-peft"
    )
    yield code_block(f"{_download(inputs)}\n{export}")
    yield code(_UNQUANTIZED, f"{name}-peft")


def _peft_adapter(inputs: CardInputs) -> Iterator[str]:
    yield "With transformers and peft:"
    yield _peft_code(_base_model(inputs), _repo_id(inputs))
    convert = f"python convert_lora_to_gguf.py {inputs.name} --base PATH/TO/THE-BASE --outfile {inputs.name}.gguf"
    yield "With llama.cpp:"
    yield code_block(f"{_download(inputs)}\n{convert}\nllama-cli -m BASE.gguf --lora {inputs.name}.gguf")


def _model(inputs: CardInputs) -> Iterator[str]:
    name, repo_id, download = inputs.name, _repo_id(inputs), _download(inputs)
    yield _WITH_MLX_LM
    yield code_block(f"mlx_lm.generate --model {repo_id} --prompt 'Your question'")
    yield "In LM Studio on a Mac, after downloading it:"
    yield code_block(f"hf download {repo_id} --local-dir ~/.lmstudio/models/{repo_id}")
    yield "With llama.cpp:"
    yield code_block(f"{download}\nmlx-dpo export --format gguf --model {name} {name}.gguf\nllama-cli -m {name}.gguf")
    if inputs.is_quantized:
        yield "transformers can't read the weights, which are quantized in MLX's format."
        return
    yield "With transformers:"
    yield code_block(
        f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
model = AutoModelForCausalLM.from_pretrained("{repo_id}")
{_CHAT}""",
        "python",
    )


def _peft_code(base: str, adapter: str) -> str:
    return code_block(
        f"""\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{adapter}")
{_CHAT}""",
        "python",
    )


def _reward_model(inputs: CardInputs) -> Iterator[str]:
    base, name, download = _base_model(inputs), inputs.name, _download(inputs)
    yield "With mlx-dpo, to score completions, or to choose the best of several:"
    yield code_block(f"{download}\nmlx-dpo score --model {base} --adapter-path {name} --data completions.jsonl")
    yield code_block(
        f"""\
from mlx_dpo import RewardModel

reward_model = RewardModel.load("{name}", model="{base}")
print(reward_model.rewards([{{"prompt": "Your question", "completion": "An answer"}}]))""",
        "python",
    )
    yield from _export_to_peft(inputs, _peft_classifier_code)


def _peft_reward_model(inputs: CardInputs) -> Iterator[str]:
    yield "With transformers and peft:"
    yield _peft_classifier_code(_base_model(inputs), _repo_id(inputs))


def _peft_classifier_code(base: str, adapter: str) -> str:
    return code_block(
        f"""\
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels=1)
model.config.pad_token_id = tokenizer.pad_token_id
model = PeftModel.from_pretrained(model, "{adapter}")
conversation = [{{"role": "user", "content": "Your question"}}, {{"role": "assistant", "content": "An answer"}}]
inputs = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
print(model(**inputs).logits.item())""",
        "python",
    )


_POLICIES = {"adapter": _adapter, "peft": _peft_adapter, "model": _model}
_REWARD_MODELS = {"adapter": _reward_model, "peft": _peft_reward_model}
