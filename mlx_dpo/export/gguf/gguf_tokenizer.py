"""A tokenizer as GGUF holds it: vocabulary, merges or scores, special tokens, chat template.

llama.cpp knows two kinds that the families written here have: byte-level BPE ("gpt2"), whose texts are cut up by a
named pattern first, and SentencePiece BPE ("llama"), which joins the neighbours of the best score. Both are read from
the tokenizer as transformers runs it, so a folder may hold tokenizer.json or tokenizer.model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mlx_dpo.errors import UserError, Where

SENTENCEPIECE_SPACE = "▁"  # SentencePiece's
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
_QWEN35 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"

# llama.cpp's name (llama-vocab.cpp) for how texts are cut up before merging, and whether whole words that are tokens
# are taken without it.
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
    """Tokens [vocabulary], each with its gguf.TokenType, and what joins them.

    Attributes:
        merges: of byte-level BPE: "left right", best first.
        scores: of SentencePiece BPE [vocabulary]: higher is joined first.
        pre: name of the pattern that texts are cut up by first.
        space_first: whether a space is put in front of a text.
    """

    tokens: list[str]
    types: list[int]
    pre_tokenizer: str = "default"
    merges: list[str] | None = None
    scores: list[float] | None = None
    add_space_prefix: bool = False


def add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int, where: Where) -> None:
    """Write a tokenizer to a gguf.GGUFWriter.

    Args:
        tokenizer: as mlx_lm.load gives it.
        rows: rows of the model's embedding; ids beyond the vocabulary are filled up to it.

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


def _add_special_tokens(writer: Any, tokenizer: Any, rows: int) -> None:
    numbers = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "pad")}
    others = sorted(tokenizer.eos_token_ids - {numbers["eos"]})  # at which mlx-lm ends an answer, too
    numbers |= dict(zip(("eot", "eom"), others, strict=False))
    for name, number in numbers.items():
        if number is not None and number < rows:  # transformers adds some that the model knows nothing of
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer.encode("a")
    writer.add_add_bos_token(numbers["bos"] is not None and ids[0] == numbers["bos"])
    writer.add_add_eos_token(len(ids) > 1 and ids[-1] == numbers["eos"])


def read_vocabulary(tokenizer: Any, vocab_size: int, where: Where) -> GGUFVocabulary:
    """What llama.cpp is to know of a tokenizer; see `add_tokenizer`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("its tokenizer is none of the tokenizers library, and can't be written as GGUF", where=where)
    told = json.loads(backend.to_str())
    model = told["model"]
    if model["type"] != "BPE":
        raise UserError(f"its {model['type']} tokenizer can't be written as GGUF, only BPE", where=where)
    names = {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}
    added = {token["id"]: token for token in told["added_tokens"]}
    bytes_as_tokens = bool(model.get("byte_fallback"))
    unknown = tokenizer.unk_token if bytes_as_tokens else None  # elsewhere it is a token of use, as Qwen's end of text
    tokens = [names.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    types = [_type(names.get(number), added.get(number), unknown, bytes_as_tokens) for number in range(vocab_size)]
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    if not bytes_as_tokens:
        _require_no_normalizer(told.get("normalizer"), where)
        pre = _pre_tokenizer(told["pre_tokenizer"], bool(model.get("ignore_merges")), where)
        return GGUFVocabulary(tokens, types, pre_tokenizer=pre, merges=[f"{left} {right}" for left, right in merges])
    scores = _scores(merges, set(model["vocab"]) - {token["content"] for token in added.values()}, where)
    return GGUFVocabulary(
        tokens=[t.replace(SENTENCEPIECE_SPACE, " ") if number in added else t for number, t in enumerate(tokens)],
        types=types,
        scores=[scores.get(names.get(number, ""), 0.0) for number in range(vocab_size)],
        add_space_prefix=_space_first(told, tokenizer, where),
    )


def _type(token: str | None, added: dict[str, Any] | None, unknown: str | None, bytes_as_tokens: bool) -> int:
    from gguf import TokenType

    if token is None:
        return TokenType.UNUSED
    if token == unknown:
        return TokenType.UNKNOWN
    if added:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if bytes_as_tokens and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return TokenType.BYTE
    return TokenType.NORMAL


# Byte-level BPE


def _require_no_normalizer(normalizer: dict[str, Any] | None, where: Where) -> None:
    if normalizer and normalizer["type"] != "NFC":  # Qwen's; llama.cpp leaves it out for all
        raise UserError(f"llama.cpp can't do the {normalizer['type']} of its tokenizer", where=where)


def _pre_tokenizer(told: dict[str, Any], whole_words: bool, where: Where) -> str:
    steps = told["pretokenizers"] if told["type"] == "Sequence" else [told]
    key = tuple(part for step in steps if (part := _part(step)))
    name = PRE_TOKENIZERS.get((key, whole_words))
    if name is None or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        cut = ", ".join(key) or "nothing"
        raise UserError(f"llama.cpp has no name for how its tokenizer cuts up texts: by {cut}", where=where)
    return name


def _part(step: dict[str, Any]) -> str:
    """What one step cuts by; empty where it cuts nothing."""
    if step["type"] == "ByteLevel":
        return "byte-level words" if step["use_regex"] else ""
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return step["pattern"].get("Regex", str(step["pattern"]))
    return json.dumps(step)


# SentencePiece BPE


def _scores(merges: list[tuple[str, ...]], tokens: set[str], where: Where) -> dict[str, float]:
    """Each joined token's score: minus the place of its first merge. SentencePiece's own order is the same.

    Raises:
        UserError: merges are not one block a token, or leave out a pair, so that no scores say the same.
    """
    scores: dict[str, float] = {}
    last = ""
    for place, (left, right) in enumerate(merges):
        token = left + right
        if token != last and token in scores:
            raise UserError(
                f"no scores say what the merges of its tokenizer say: {token!r} is in two places", where=where
            )
        scores.setdefault(token, -float(place))
        last = token
    known = set(merges)
    for token in tokens:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if tokens.issuperset(pair) and pair not in known:
                raise UserError(f"no scores say what the merges of its tokenizer say: {pair} is in none", where=where)
    return scores


def _space_first(told: dict[str, Any], tokenizer: Any, where: Where) -> bool:
    """Whether a space goes in front of a text. Raises `UserError` where something else is done to it, too."""
    normalizer, pre = told.get("normalizer"), told.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    for step in steps:
        prepends = step == {"type": "Prepend", "prepend": SENTENCEPIECE_SPACE}
        if not prepends and step != {"type": "Replace", "pattern": {"String": " "}, "content": SENTENCEPIECE_SPACE}:
            raise UserError(f"llama.cpp can't do the {step['type']} of its tokenizer", where=where)
    if pre and not (pre["type"] == "Metaspace" or (pre["type"] == "Split" and pre["pattern"] == {"String": " "})):
        raise UserError(f"llama.cpp can't do the {pre['type']} of its tokenizer", where=where)
    if any(step["type"] == "Prepend" for step in steps):
        return True
    scheme = (pre or {}).get("prepend_scheme", "never")
    return scheme == "always" or (scheme == "first" and not _chats_start_special(tokenizer))


def _chats_start_special(tokenizer: Any) -> bool:
    """Whether a chat starts with a special token: then nothing of it is the text that alone gets a space in front.

    llama.cpp puts one in front of every text between special tokens, or of none.
    """
    if not tokenizer.chat_template:
        return False
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    return chat.startswith(tuple(tokenizer.all_special_tokens))
