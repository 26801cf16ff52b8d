"""Makes the tiny SentencePiece tokenizer that the GGUF tests use, from the bundled pairs: tests/export/spm.

Run once and committed with what it wrote (sentencepiece 0.2.3, transformers 5.24.0):

    .venv/bin/python tests/export/make_spm.py
"""

from pathlib import Path

import sentencepiece
from transformers import LlamaTokenizer

from mlx_dpo.demo import load_pairs

HERE = Path(__file__).parent / "spm"
TEMPLATE = "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}</turn>\n{% endfor %}"


def main() -> None:
    HERE.mkdir(exist_ok=True)
    texts = [text for row in load_pairs("train") for text in (row["prompt"], row["chosen"])]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(HERE / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        control_symbols=["<turn>", "</turn>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    (HERE / "tokenizer.vocab").unlink()
    tokenizer = LlamaTokenizer.from_pretrained(HERE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(HERE)


if __name__ == "__main__":
    main()
