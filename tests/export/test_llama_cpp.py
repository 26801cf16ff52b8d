"""GGUF files in llama.cpp itself: token ids, rendered chats, log-probs and greedy completions as in mlx-lm.

It is llama.cpp's server, from the package xllamacpp: make test-llamacpp.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load, load_model, load_tokenizer
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.distributed.launcher import find_free_ports
from mlx_dpo.export.gguf.gguf_export import write_gguf, write_gguf_lora
from mlx_dpo.export.gguf.gguf_tokenizer import PRE_TOKENIZERS
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.sampling.generation import generate_from_token_ids
from tests.export.servers import post, running_server
from tests.export.test_gguf import make_adapter
from tests.export.tiny import FAMILIES, SPM, make_model

pytest.importorskip("xllamacpp", reason="needs the extra test-llamacpp: make test-llamacpp")
pytestmark = pytest.mark.llamacpp

PROMPTS = [row["prompt"] for row in load_pairs("valid")[:12]]
IDS = [5, 77, 9, 300, 41, 8, 120, 3, 260, 17, 33, 91, 200, 399, 55, 44, 66]
TEXTS = [
    "Hello, world!  It's 12345 o'clock; they'll've gone.",
    "  two leading spaces, trailing too  ",
    "tabs\tand\n\nnew lines\r\n   \n indented\n",
    "Grüße aus Köln, naïve façade, McDonald",
    "日本語 とても、 한국어 русский العربية",
    "ÆØÅ ÉCOLE हिन्दी में किताब",
    "🙂👩‍👩‍👧 x² ½ Ⅷ ١٢٣ 1,234.56",
    "def f(x):\n\treturn {'a': x[1:-1]}  # comment",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
]
# llama.cpp's pattern for Mistral's later tokenizers ("tekken") takes A to Z for all capitals, and marks for no letters.
TEXTS_OF_OTHERS = {"tekken": {TEXTS[5]}}


@contextmanager
def llama_server(model: Path, *adapters: Path) -> Iterator[httpx.Client]:
    port = find_free_ports(1)
    script = Path(__file__).with_name("llama_cpp_server.py")
    command = [sys.executable, str(script), str(port), *map(str, (model, *adapters))]
    with running_server(command, f"http://127.0.0.1:{port}", model.with_suffix(".log")) as client:
        yield client


def next_token_logps(client: httpx.Client, ids: list[int], vocab_size: int, forced_id: int, **body: Any) -> np.ndarray:
    """Log-probs [vocab_size] of the token after `ids`.

    The server gives none for a token that is part of a character, so one that is not is forced; they are of the
    logits before that.
    """
    options = {"n_predict": 1, "n_probs": vocab_size, "temperature": 0, "logit_bias": [[forced_id, 1000.0]], **body}
    (step,) = post(client, "/completion", prompt=ids, **options)["completion_probabilities"]
    assert step["id"] == forced_id and len(step["top_logprobs"]) == vocab_size
    logps = np.zeros(vocab_size)
    for token in step["top_logprobs"]:
        logps[token["id"]] = token["logprob"]
    return logps


def mlx_logps(model: Any, ids: list[int]) -> np.ndarray:
    """Log-probs [len(ids), vocab_size] of mlx-lm, in float32."""
    logits = model(mx.array([ids]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def largest_difference(
    client: httpx.Client, model: Any, vocab_size: int, ids: list[int], forced_id: int, **body: Any
) -> float:
    expected = mlx_logps(model, ids)
    lengths = (1, 4, len(ids))
    actual = [next_token_logps(client, ids[:length], vocab_size, forced_id, **body) for length in lengths]
    return float(max(np.abs(row - expected[length - 1]).max() for row, length in zip(actual, lengths, strict=True)))


# The network


@pytest.mark.parametrize("kind", FAMILIES)
def test_log_probs_of_each_family(tmp_path: Path, kind: str) -> None:
    """In float32; ggml's GELU, which Gemma has, is read from a table in float16."""
    folder = make_model(tmp_path / "model", kind)
    write_gguf(folder, tmp_path / "model.gguf", "f32")
    model, _ = load_model(folder)
    with llama_server(tmp_path / "model.gguf") as client:
        difference = largest_difference(client, model, 400, IDS, forced_id=65)
    assert difference < (0.03 if kind.startswith("gemma") else 1e-4)


@pytest.mark.parametrize(("matrix_type", "tolerance"), [("f16", 0.01), ("q8_0", 0.15)])
def test_log_probs_in_fewer_bits(tmp_path: Path, matrix_type: Any, tolerance: float) -> None:
    folder = make_model(tmp_path / "model", "llama")
    write_gguf(folder, tmp_path / "model.gguf", matrix_type)
    model, _ = load_model(folder)
    with llama_server(tmp_path / "model.gguf") as client:
        assert largest_difference(client, model, 400, IDS, forced_id=65) < tolerance


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_an_adapter(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / "model", kind)
    make_adapter(folder, tmp_path / "run")
    write_gguf(folder, tmp_path / "model.gguf", "f32")
    write_gguf_lora(folder, tmp_path / "run", tmp_path / "lora.gguf")
    model, _ = load(str(folder), adapter_path=str(tmp_path / "run"))
    base, _ = load_model(folder)
    assert np.abs(mlx_logps(model, IDS) - mlx_logps(base, IDS)).max() > 1
    with llama_server(tmp_path / "model.gguf", tmp_path / "lora.gguf") as client:
        difference = largest_difference(client, model, 400, IDS, forced_id=65)
        without = largest_difference(client, base, 400, IDS, forced_id=65, lora=[{"id": 0, "scale": 0.0}])
    assert difference < (0.05 if kind.startswith("gemma") else 1e-3)
    assert without < (0.03 if kind.startswith("gemma") else 1e-4)


# The bundled model


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    file = tmp_path_factory.mktemp("bundled") / "demo.gguf"
    write_gguf(MODEL, file)
    with llama_server(file) as client:
        yield client


def test_answers_of_the_bundled_model(bundled: httpx.Client) -> None:
    model, tokenizer = load(str(MODEL))
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    for chat, prompt_ids in zip(chats, ids, strict=True):
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert post(bundled, "/apply-template", messages=chat)["prompt"] == text
        assert post(bundled, "/tokenize", content=text, parse_special=True)["tokens"] == prompt_ids
    options = {"max_tokens": 32, "temperature": 0}
    replies = [post(bundled, "/v1/chat/completions", messages=chat, **options) for chat in chats]
    answers = [reply["choices"][0]["message"]["content"].strip() for reply in replies]
    assert answers == generate_from_token_ids(model, tokenizer, ids, SamplingParams(32, temperature=0.0))
    assert len(set(answers)) > 6
    for prompt_ids in ids[:3]:
        assert largest_difference(bundled, model, 1280, list(prompt_ids), forced_id=300) < 0.02


# Token ids


def token_ids(client: httpx.Client, text: str) -> list[int]:
    return post(client, "/tokenize", content=text, parse_special=True, add_special=False)["tokens"]


def pre_tokenizer_json(patterns: tuple[str, ...]) -> dict[str, Any]:
    """The steps of a tokenizer.json that `PRE_TOKENIZERS` names."""
    steps: list[dict[str, Any]] = []
    for pattern in patterns:
        if pattern == "digits":
            steps.append({"type": "Digits", "individual_digits": True})
        elif pattern != "byte-level words":
            split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            steps.append(split)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps.append({**byte_level, "use_regex": "byte-level words" in patterns})
    return {"type": "Sequence", "pretokenizers": steps}


def merges_of_whole_texts(vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer whose token ids show where a text was split: its merges cross words.

    Some merges are left out, so that there are tokens that only `ignore_merges` finds.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    options = {"show_progress": False, "initial_alphabet": ByteLevel.alphabet(), "special_tokens": special}
    tokenizer.train_from_iterator([*TEXTS, *TEXTS], BpeTrainer(vocab_size=vocab_size, min_frequency=2, **options))
    config = json.loads(tokenizer.to_str())
    del config["model"]["merges"][20::7]
    return config


@pytest.mark.parametrize(("patterns", "ignore_merges"), PRE_TOKENIZERS, ids=PRE_TOKENIZERS.values())
def test_byte_level_token_ids(tmp_path: Path, patterns: tuple[str, ...], ignore_merges: bool) -> None:
    config = merges_of_whole_texts(500)
    config["pre_tokenizer"] = pre_tokenizer_json(patterns)
    config["model"]["ignore_merges"] = ignore_merges
    folder = make_model(tmp_path / "model", "qwen3", tokenizer=MODEL, vocab_size=500)
    (folder / "tokenizer.json").write_text(json.dumps(config), encoding="utf-8")
    write_gguf(folder, tmp_path / "model.gguf")
    tokenizer, name = load_tokenizer(folder), PRE_TOKENIZERS[patterns, ignore_merges]
    with llama_server(tmp_path / "model.gguf") as client:
        for text in TEXTS:
            if text in TEXTS_OF_OTHERS.get(name, ()):
                continue
            assert token_ids(client, text) == tokenizer.encode(text, add_special_tokens=False), text


def test_sentencepiece_token_ids(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "mistral")
    write_gguf(folder, tmp_path / "model.gguf")
    tokenizer = load_tokenizer(folder)
    assert (SPM / "chat_template.jinja").is_file()
    with llama_server(tmp_path / "model.gguf") as client:
        for content in TEXTS[:-1]:
            chat = [{"role": "user", "content": content}]
            expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
            prompt = post(client, "/apply-template", messages=chat)["prompt"]
            actual = post(client, "/tokenize", content=prompt, parse_special=True, add_special=True)["tokens"]
            assert actual == list(expected), content
