"""Write a tokenizer into a GGUF file: vocabulary, merges or scores, special tokens, chat template.

llama.cpp has two kinds of tokenizers for the supported model families: byte-level BPE ("gpt2"), which first splits a
text by a pattern that has a name, and SentencePiece BPE ("llama"), which merges the neighbours with the best score.
Both are read from the tokenizer as transformers loads it, so a folder may hold tokenizer.json or tokenizer.model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from mlx_dpo.errors import UserError, Where

SENTENCEPIECE_SPACE = "▁"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
_QWEN35 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"

# llama.cpp's names (llama-vocab.cpp) of pre-tokenizers, by the patterns that split a text and by whether a piece that
# is itself a token is used without merging.
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (("byte-level words",), False): "gpt-2",
    (("digits", "byte-level words"), False): "smollm",
    ((rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}",), True): "llama-bpe",
    ((rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}",), False): "dbrx",
    ((rf"{_WORDS}|\p{{N}}{_REST}",), False): "qwen2",
    ((rf"{_QWEN35}|\s*[\r\n]+|\s+(?!\S)|\s+",), False): "qwen35",
    ((rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",), True): "tekken",
}


@dataclass(frozen=True)
class GGUFVocabulary:
    """A vocabulary as a GGUF file holds it.

    Attributes:
        tokens: [vocab_size].
        types: the gguf.TokenType of each token [vocab_size].
        pre_tokenizer: llama.cpp's name of the pattern that splits texts first.
        merges: of byte-level BPE: "left right", best first.
        scores: of SentencePiece BPE [vocab_size]; the higher is merged first.
        add_space_prefix: whether a space is put in front of a text.
    """

    tokens: list[str]
    types: list[int]
    pre_tokenizer: str = "default"
    merges: list[str] | None = None
    scores: list[float] | None = None
    add_space_prefix: bool = False


def add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int, where: Where) -> None:
    """Write a tokenizer.

    Args:
        writer: a gguf.GGUFWriter.
        tokenizer: as mlx_lm.load returns it.
        vocab_size: rows of the model's embedding; ids beyond the vocabulary become unused tokens.
        where: the model's folder, for messages.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    vocabulary = read_vocabulary(tokenizer, vocab_size, where)
    writer.add_tokenizer_model("llama" if vocabulary.merges is None else "gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    _add_special_tokens(writer, tokenizer, vocab_size)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def read_vocabulary(tokenizer: Any, vocab_size: int, where: Where) -> GGUFVocabulary:
    """Convert a tokenizer's vocabulary and merges.

    Args:
        tokenizer: as mlx_lm.load returns it.
        vocab_size: rows of the model's embedding; ids beyond the vocabulary become unused tokens.
        where: the model's folder, for messages.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("only tokenizers of the library `tokenizers` can be written as GGUF", where=where)
    config = json.loads(backend.to_str())
    model = config["model"]
    if model["type"] != "BPE":
        raise UserError(f"its {model['type']} tokenizer can't be written as GGUF, only BPE", where=where)
    names = {token_id: token for token, token_id in backend.get_vocab(with_added_tokens=True).items()}
    added_tokens = {token["id"]: token for token in config["added_tokens"]}
    is_sentencepiece = bool(model.get("byte_fallback"))
    # In byte-level BPE the unknown token is an ordinary one, such as Qwen's end of text.
    unknown = tokenizer.unk_token if is_sentencepiece else None
    ids = range(vocab_size)
    tokens = [names.get(i, f"[PAD{i}]") for i in ids]
    types = [_token_type(names.get(i), added_tokens.get(i), unknown, is_sentencepiece) for i in ids]
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    if not is_sentencepiece:
        _require_no_normalizer(config.get("normalizer"), where)
        name = _pre_tokenizer_name(config["pre_tokenizer"], bool(model.get("ignore_merges")), where)
        return GGUFVocabulary(tokens, types, pre_tokenizer=name, merges=[f"{left} {right}" for left, right in merges])
    regular_tokens = set(model["vocab"]) - {token["content"] for token in added_tokens.values()}
    scores = _scores(merges, regular_tokens, where)
    return GGUFVocabulary(
        tokens=[
            token.replace(SENTENCEPIECE_SPACE, " ") if i in added_tokens else token for i, token in enumerate(tokens)
        ],
        types=types,
        scores=[scores.get(names.get(i, ""), 0.0) for i in ids],
        add_space_prefix=_adds_space_prefix(config, tokenizer, where),
    )


def _add_special_tokens(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    special_ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "pad")}
    further_eos_ids = sorted(tokenizer.eos_token_ids - {special_ids["eos"]})  # also end a completion in mlx-lm
    special_ids |= dict(zip(("eot", "eom"), further_eos_ids, strict=False))
    for name, token_id in special_ids.items():
        if token_id is not None and token_id < vocab_size:  # transformers adds tokens that the model doesn't have
            getattr(writer, f"add_{name}_token_id")(token_id)
    ids = tokenizer.encode("a")
    writer.add_add_bos_token(special_ids["bos"] is not None and ids[0] == special_ids["bos"])
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == special_ids["eos"])


def _token_type(token: str | None, added: dict[str, Any] | None, unknown: str | None, is_sentencepiece: bool) -> int:
    from gguf import TokenType

    if token is None:
        return TokenType.UNUSED
    if token == unknown:
        return TokenType.UNKNOWN
    if added:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if is_sentencepiece and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return TokenType.BYTE
    return TokenType.NORMAL


# Byte-level BPE


def _require_no_normalizer(normalizer: dict[str, Any] | None, where: Where) -> None:
    if normalizer and normalizer["type"] != "NFC":  # Qwen's; llama.cpp omits it in all Qwen models
        _refuse_step(normalizer, where)


def _refuse_step(step: dict[str, Any], where: Where) -> NoReturn:
    raise UserError(f"llama.cpp does not support the step {step['type']} of its tokenizer", where=where)


def _pre_tokenizer_name(pre_tokenizer: dict[str, Any], ignores_merges: bool, where: Where) -> str:
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    patterns = tuple(pattern for step in steps if (pattern := _split_pattern(step)))
    name = PRE_TOKENIZERS.get((patterns, ignores_merges))
    if name is None or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        description = ", ".join(patterns) or "nothing"
        raise UserError(f"llama.cpp has no name for its pre-tokenizer, which splits by: {description}", where=where)
    return name


def _split_pattern(step: dict[str, Any]) -> str:
    """What a step of a pre-tokenizer splits by; empty if it doesn't split."""
    if step["type"] == "ByteLevel":
        return "byte-level words" if step["use_regex"] else ""
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return step["pattern"].get("Regex", str(step["pattern"]))
    return json.dumps(step)


# SentencePiece BPE


def _scores(merges: list[tuple[str, ...]], tokens: set[str], where: Where) -> dict[str, float]:
    """The score of each merged token: minus the index of its first merge, which gives SentencePiece's own order.

    Raises:
        UserError: the merges of a token are not consecutive or a pair is missing, so that no scores are equivalent.
    """
    problem = "its tokenizer's merges can't be expressed as scores"
    scores: dict[str, float] = {}
    previous = ""
    for index, (left, right) in enumerate(merges):
        token = left + right
        if token != previous and token in scores:
            raise UserError(f"{problem}: the merges of {token!r} are not consecutive", where=where)
        scores.setdefault(token, -float(index))
        previous = token
    known_pairs = set(merges)
    for token in tokens:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if tokens.issuperset(pair) and pair not in known_pairs:
                raise UserError(f"{problem}: there is none for {pair}", where=where)
    return scores


def _adds_space_prefix(config: dict[str, Any], tokenizer: Any, where: Where) -> bool:
    """Whether a space is put in front of a text. Raises `UserError` if the text is changed in other ways."""
    normalizer, pre_tokenizer = config.get("normalizer"), config.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prepend = {"type": "Prepend", "prepend": SENTENCEPIECE_SPACE}
    replace_spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SENTENCEPIECE_SPACE}
    for step in steps:
        if step not in (prepend, replace_spaces):
            _refuse_step(step, where)
    if pre_tokenizer and pre_tokenizer["type"] != "Metaspace":
        splits_at_spaces = pre_tokenizer["type"] == "Split" and pre_tokenizer["pattern"] == {"String": " "}
        if not splits_at_spaces:
            _refuse_step(pre_tokenizer, where)
    if prepend in steps:
        return True
    scheme = (pre_tokenizer or {}).get("prepend_scheme", "never")
    return scheme == "always" or (scheme == "first" and not _chats_start_with_special_token(tokenizer))


def _chats_start_with_special_token(tokenizer: Any) -> bool:
    """Whether a chat starts with a special token, so that no text of it gets a space in front.

    llama.cpp puts one in front of every text between special tokens, or of none.
    """
    if not tokenizer.chat_template:
        return False
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    return chat.startswith(tuple(tokenizer.all_special_tokens))
