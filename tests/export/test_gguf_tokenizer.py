"""Tokenizers in GGUF files, against the files they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer

from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.gguf.gguf_export import write_gguf
from mlx_dpo.export.gguf.gguf_tokenizer import read_vocabulary
from tests.export.test_gguf import read_gguf
from tests.export.tiny import BPE, SPM, make_model


def test_a_byte_level_tokenizer(tmp_path: Path) -> None:
    write_gguf(make_model(tmp_path / "model", "qwen3", tokenizer=BPE), tmp_path / "out.gguf")
    fields, tensors = read_gguf(tmp_path / "out.gguf")
    tokenizer_json = json.loads((BPE / "tokenizer.json").read_text())
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    names = {number: token for token, number in tokenizer_json["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in tokenizer_json["added_tokens"]}
    assert len(tokens) == len(types) == 400 == tensors["token_embd.weight"].shape[1]
    assert {number: tokens[number] for number in names} == names
    assert types[:4] == [3, 3, 3, 1] and types[-1] == 5 and tokens[-1] == "[PAD399]"
    assert fields["tokenizer.ggml.merges"] == [" ".join(merge) for merge in tokenizer_json["model"]["merges"]]
    assert fields["tokenizer.ggml.eos_token_id"] == 2 and fields["tokenizer.ggml.padding_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"] is False
    config = json.loads((BPE / "tokenizer_config.json").read_text())
    assert fields["tokenizer.chat_template"] == config["chat_template"]


def test_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    """Its scores order the tokens as the SentencePiece model's own do."""
    import sentencepiece

    write_gguf(make_model(tmp_path / "model", "mistral"), tmp_path / "out.gguf")
    fields, _ = read_gguf(tmp_path / "out.gguf")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(SPM / "tokenizer.model"))
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    assert tokens == [pieces.id_to_piece(i) for i in range(400)]
    joined = [i for i in range(5, 400) if len(pieces.id_to_piece(i)) > 1 and not pieces.is_byte(i)]
    assert len(joined) > 50
    assert sorted(joined, key=lambda i: -scores[i]) == sorted(joined, key=lambda i: -pieces.get_score(i))
    types = fields["tokenizer.ggml.token_type"]
    assert types[:5] == [2, 3, 3, 3, 3] and types[5] == 6 and types[-1] == 1
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.bos_token_id"]) == ("llama", 1)
    assert fields["tokenizer.ggml.add_space_prefix"] is False  # its chats begin with <s>
    assert fields["tokenizer.chat_template"] == (SPM / "chat_template.jinja").read_text()


def test_every_end_of_an_answer_is_told(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "mistral", eos_token_id=[2, 4])
    write_gguf(folder, tmp_path / "out.gguf")
    fields, _ = read_gguf(tmp_path / "out.gguf")
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (2, 4)


def test_special_tokens_that_the_model_lacks_are_left_out(tmp_path: Path) -> None:
    """transformers gives a tokenizer of qwen2's one for padding, behind the last of the model's."""
    folder = make_model(tmp_path / "model", "qwen2")
    assert load_tokenizer(folder).pad_token_id == 400
    write_gguf(folder, tmp_path / "out.gguf")
    fields, _ = read_gguf(tmp_path / "out.gguf")
    assert "tokenizer.ggml.padding_token_id" not in fields and len(fields["tokenizer.ggml.tokens"]) == 400


def test_a_sentencepiece_tokenizer_without_chats_puts_a_space_in_front(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "mistral")
    (folder / "chat_template.jinja").unlink()
    write_gguf(folder, tmp_path / "out.gguf")
    fields, _ = read_gguf(tmp_path / "out.gguf")
    assert fields["tokenizer.ggml.add_space_prefix"] is True and "tokenizer.chat_template" not in fields


TOKENIZERS: list[tuple[Path, dict[str, Any], str]] = [
    (BPE, {"pre_tokenizer": {"type": "Whitespace"}}, "no name.*Whitespace"),
    (BPE, {"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    (SPM, {"normalizer": {"type": "NFKC"}}, "NFKC"),
    (SPM, {"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
]


@pytest.mark.parametrize(("tokenizer", "parts", "message"), TOKENIZERS)
def test_other_tokenizers_are_refused(tmp_path: Path, tokenizer: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vocabulary_of(tokenizer, **parts)


class Backend:
    """A tokenizer of the tokenizers library, of which parts are said to be others."""

    def __init__(self, backend: Any, **parts: Any) -> None:
        self.tokenizer_json = json.loads(backend.to_str()) | parts
        self.get_vocab = backend.get_vocab

    def to_str(self) -> str:
        return json.dumps(self.tokenizer_json)


def vocabulary_of(folder: Path, model: dict[str, Any] | None = None, **parts: Any) -> Any:
    tokenizer = load_tokenizer(folder)
    backend = Backend(tokenizer.backend_tokenizer, **parts)
    backend.tokenizer_json["model"] |= model or {}

    class Tokenizer:
        backend_tokenizer = backend
        unk_token, chat_template = tokenizer.unk_token, None

    return read_vocabulary(Tokenizer(), 400, Where(str(folder)))


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(("numbers", "whole_words", "name"), [
    ("{1,3}", True, "llama-bpe"), ("{1,3}", False, "dbrx"), ("", False, "qwen2"),
])  # fmt: skip
def test_how_texts_are_cut_up_is_named(numbers: str, whole_words: bool, name: str) -> None:
    """The patterns of Llama 3 and Qwen 2, as their tokenizer.json hold them."""
    split = {
        "type": "Split",
        "pattern": {"Regex": WORDS.replace("NUMBERS", numbers)},
        "behavior": "Isolated",
        "invert": False,
    }
    sequence = {"type": "Sequence", "pretokenizers": [split, BYTES]}
    vocabulary = vocabulary_of(BPE, {"ignore_merges": whole_words}, pre_tokenizer=sequence, normalizer={"type": "NFC"})
    assert vocabulary.pre_tokenizer == name


def test_merges_that_no_scores_say_are_refused() -> None:
    merges = json.loads((SPM / "tokenizer.json").read_text())["model"]["merges"]
    assert vocabulary_of(SPM).scores
    with pytest.raises(UserError, match="there is none for"):
        vocabulary_of(SPM, {"merges": merges[:-1]})
    with pytest.raises(UserError, match="not consecutive"):
        vocabulary_of(SPM, {"merges": [*merges, merges[0]]})


def test_unigram_is_refused() -> None:
    with pytest.raises(UserError, match="Unigram"):
        vocabulary_of(BPE, {"type": "Unigram"})
