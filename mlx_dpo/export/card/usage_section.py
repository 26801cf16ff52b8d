"""The card's section on running it: each command stands only where it works with what is in the repository."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_dpo.export.card.model_card import CardInputs

_CHAT = """\
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Your question"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=256)[0]))"""


def usage_section(known: CardInputs) -> Iterator[str]:
    """The section, part by part."""
    yield "## How to run it"
    yield from {"adapter": _adapter, "peft": _peft, "model": _model}[known.kind](known)


def _block(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"


def _repo(known: CardInputs) -> str:
    return known.repo_id or f"USER/{known.name}"


def _base(known: CardInputs) -> str:
    return known.base.repo_id or f"PATH/TO/{known.base.display_name}".replace(" ", "-")


def _download(known: CardInputs) -> str:
    return f"hf download {_repo(known)} --local-dir {known.name}"


def _adapter(known: CardInputs) -> Iterator[str]:
    base, name = _base(known), known.name
    yield "With [mlx-lm](https://github.com/ml-explore/mlx-lm), on a Mac (Linux: `pip install 'mlx-lm[cpu]'`):"
    generate = f"mlx_lm.generate --model {base} --adapter-path {name} --prompt 'Your question'"
    yield _block(f"{_download(known)}\n{generate}")
    fuse = f"mlx-dpo fuse --model {base} --adapter-path {name} --dequantize --save-path {name}-fused"
    yield "With llama.cpp or LM Studio, fold it into its model first:"
    yield _block(
        f"{_download(known)}\n{fuse}\n"
        f"mlx-dpo export --format gguf --model {name}-fused {name}.gguf   # then: llama-cli -m {name}.gguf\n"
        f"cp -r {name}-fused ~/.lmstudio/models/{_repo(known)}   # LM Studio on a Mac lists it under My Models"
    )
    if known.config.get("fine_tune_type", "lora") == "full":
        return
    yield "With transformers and peft, on the float model that the base was made from:"
    yield _block(f"{_download(known)}\nmlx-dpo export --format peft --model {base} --adapter-path {name} {name}-peft")
    yield _block(_with_peft("THE-FLOAT-MODEL", f"{name}-peft"), "python")


def _with_peft(base: str, adapter: str) -> str:
    return f"""\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{adapter}")
{_CHAT}"""


def _peft(known: CardInputs) -> Iterator[str]:
    yield "With transformers and peft:"
    yield _block(_with_peft(_base(known), _repo(known)), "python")
    yield "With llama.cpp:"
    convert = f"python convert_lora_to_gguf.py {known.name} --base PATH/TO/THE-BASE --outfile {known.name}.gguf"
    yield _block(f"{_download(known)}\n{convert}\nllama-cli -m BASE.gguf --lora {known.name}.gguf")


def _model(known: CardInputs) -> Iterator[str]:
    yield "With [mlx-lm](https://github.com/ml-explore/mlx-lm), on a Mac (Linux: `pip install 'mlx-lm[cpu]'`):"
    yield _block(f"mlx_lm.generate --model {_repo(known)} --prompt 'Your question'")
    yield "In LM Studio on a Mac, once it is downloaded:"
    yield _block(f"hf download {_repo(known)} --local-dir ~/.lmstudio/models/{_repo(known)}")
    gguf = f"mlx-dpo export --format gguf --model {known.name} {known.name}.gguf\nllama-cli -m {known.name}.gguf"
    yield "With llama.cpp:"
    yield _block(f"{_download(known)}\n{gguf}")
    if known.is_quantized:
        yield "Its weights are quantized as MLX has it, which transformers doesn't read."
        return
    yield "With transformers:"
    code = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{_repo(known)}")
model = AutoModelForCausalLM.from_pretrained("{_repo(known)}")
{_CHAT}"""
    yield _block(code, "python")
