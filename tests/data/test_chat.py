"""Where the prompt ends and what is trained: against TRL's ids, and under templates of every temper."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper, load
from transformers import AutoTokenizer

from mlx_dpo.data.chat_encoding import EncodedExample, ExampleEncoder
from mlx_dpo.data.encoding_warnings import encoding_warnings
from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.row_parsing import parse_pairs
from mlx_dpo.errors import RowError, UserError, Where
from tests.conftest import CHECKPOINT, PAIRS, TRL

WHERE = Where("rows.jsonl", 3)
CHATML_TOKENIZER = AutoTokenizer.from_pretrained(CHECKPOINT)
CHATML = CHATML_TOKENIZER.chat_template
# A last answer is rendered with its thinking, earlier ones without, and the generation prompt begins to think
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if loop.last and m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role + ':\n' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role + '\n' }}{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(template: str | None = CHATML, **more: Any) -> Any:
    made = AutoTokenizer.from_pretrained(CHECKPOINT, **more)
    made.chat_template = template
    return made


def encoder(tok: Any = None, max_length: int = 10_000, overlong: Any = "truncate", raw: bool = False) -> ExampleEncoder:
    return ExampleEncoder(tok or tokenizer(), max_length=max_length, overlong=overlong, raw=raw)


def encode(e: ExampleEncoder, pair: Pair) -> EncodedExample:
    encoded = e(pair, WHERE)
    assert encoded is not None
    assert encoded.prompt and encoded.chosen and encoded.rejected
    return encoded


def texts(e: ExampleEncoder, pair: Pair) -> tuple[str, str, str]:
    encoded = encode(e, pair)
    prompt, chosen, rejected = (e.tokenizer.decode(list(x)) for x in (encoded.prompt, encoded.chosen, encoded.rejected))
    return prompt, chosen, rejected


def chat(*contents: str, system: str | None = None, chosen: str = "good", rejected: str = "bad") -> Pair:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    turns = ([{"role": "system", "content": system}] if system else []) + turns
    return Pair(turns, [{"role": "assistant", "content": chosen}], [{"role": "assistant", "content": rejected}])


@pytest.mark.parametrize("load_tokenizer", [load, AutoTokenizer.from_pretrained])
def test_ids_are_trls(load_tokenizer: Any) -> None:
    reference = json.loads((TRL / "reference.json").read_text())["pairs"]
    pairs = ExampleFile.open(str(PAIRS))
    encode_ = encoder(load_tokenizer(CHECKPOINT))
    assert len(pairs) == len(reference)
    for i, expected in enumerate(reference):
        encoded = encode(encode_, pairs[i])
        assert list(encoded.prompt) == expected["prompt_ids"]
        assert list(encoded.chosen) == expected["chosen_ids"]
        assert list(encoded.rejected) == expected["rejected_ids"]
        assert encoded.prompt_is_prefix and not encoded.truncated


def test_texts_are_wrapped_as_turns() -> None:
    assert encode(encoder(), Pair("q", "good", "bad")) == encode(encoder(), chat("q"))
    assert texts(encoder(), Pair("q", "good", "bad")) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "good<|im_end|>\n",
        "bad<|im_end|>\n",
    )


def test_prompt_that_is_no_prefix() -> None:
    e = encoder(tokenizer(THINKING))
    encoded = encode(e, chat("q"))
    assert not encoded.prompt_is_prefix
    assert texts(e, chat("q")) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "good<|im_end|>\n",
        "bad<|im_end|>\n",
    )


def test_no_prefix_on_one_side_only() -> None:
    pair = chat("q")
    pair.chosen[0]["reasoning_content"] = "\nhm"  # type: ignore[index]
    e = encoder(tokenizer(THINKING))
    prompt, chosen, rejected = texts(e, pair)
    assert not encode(e, pair).prompt_is_prefix
    assert prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert (chosen, rejected) == ("hm</think>\ngood<|im_end|>\n", "bad<|im_end|>\n")


def test_earlier_thinking_is_rendered_alike_in_prompt_and_whole() -> None:
    pair = chat("q", "<think>x</think>a", "more")
    pair.chosen[0]["reasoning_content"] = pair.rejected[0]["reasoning_content"] = "\nhm"  # type: ignore[index]
    encoded = encode(encoder(tokenizer(THINKING)), pair)
    assert encoded.prompt_is_prefix
    assert texts(encoder(tokenizer(THINKING)), pair)[1] == "hm</think>\ngood<|im_end|>\n"


def test_template_kwargs_and_tools_reach_the_template() -> None:
    shows = "{% if tools %}TOOLS {{ tools[0].name }}{% endif %}{{ mood }}" + CHATML
    pair = Pair("q", "good", "bad", [{"name": "f"}], {"mood": "glad"})
    assert "TOOLS fglad" in texts(encoder(tokenizer(shows)), pair)[0]


def test_mlx_lm_wrapper_with_a_renderer_of_its_own() -> None:
    def render(messages: Any, add_generation_prompt: bool = False, enable_thinking: bool = True) -> str:
        said = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>" for m in messages)
        return said + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    e = encoder(TokenizerWrapper(tokenizer(None), chat_template=render))
    assert texts(e, Pair("q", "good", "bad"))[1:] == ("good<|im_end|>", "bad<|im_end|>")


def test_eos_is_added_where_the_template_forgets_it() -> None:
    assert texts(encoder(tokenizer(NO_END)), chat("q")) == (
        "user:\nq\nassistant:\n",
        "good\n<|im_end|>",
        "bad\n<|im_end|>",
    )


def test_bos_comes_once() -> None:
    tok = tokenizer(STRICT, bos_token="<|endoftext|>")
    assert encode(encoder(tok), chat("q")).prompt.count(tok.bos_token_id) == 1


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (chat("q", system="s"), "System role not supported"),
        (Pair([{"role": "user", "content": "q"}] * 2, "good", "bad"), "Roles must alternate"),
    ],
)
def test_the_template_refuses(pair: Pair, said: str) -> None:
    with pytest.raises(RowError, match=said) as raised:
        encoder(tokenizer(STRICT))(pair, WHERE)
    assert (raised.value.kind, raised.value.where) == ("template", WHERE)


@pytest.mark.parametrize("template", ["{{ messages[9].content }}", "{{ 1 / 0 }}", "{{ nothing() }}"])
def test_any_failure_of_a_template_is_a_complaint(template: str) -> None:
    with pytest.raises(RowError) as raised:
        encoder(tokenizer(template))(chat("q"), WHERE)
    assert raised.value.kind == "template"


def test_a_syntax_error_of_the_template_is_no_row_s_fault() -> None:
    with pytest.raises(UserError, match="the model's chat template has an error at line 3: ") as raised:
        encoder(tokenizer("{{ bos_token }}\n\n{% for %}"))(chat("q"), WHERE)
    assert not isinstance(raised.value, RowError)


def test_template_that_says_nothing_of_the_prompt() -> None:
    only_last = "{% if not add_generation_prompt %}{{ messages[-1].content }}<|im_end|>{% endif %}"
    tok = tokenizer(only_last)
    encoded = encode(encoder(tok), chat("q"))
    assert encoded.prompt == (tok.eos_token_id,)
    assert tok.decode(list(encoded.chosen)) == "good<|im_end|>"


def test_answers_go_on_with_a_last_turn_of_the_assistant() -> None:
    pair = chat("q", "It is", chosen=" four", rejected=" five")
    prompt, chosen, rejected = texts(encoder(), pair)
    assert encode(encoder(), pair).prompt_is_prefix
    assert prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nIt is"
    assert (chosen, rejected) == (" four<|im_end|>\n", " five<|im_end|>\n")
    with_strict = texts(encoder(tokenizer(STRICT, bos_token="<|endoftext|>")), pair)
    assert with_strict[1:] == (" four<|im_end|>", " five<|im_end|>")


# Texts as they are


def test_raw_texts() -> None:
    pair = Pair("The sky is", " blue.", " green.")
    for e in (encoder(raw=True), encoder(tokenizer(None))):
        assert texts(e, pair) == ("The sky is", " blue.<|im_end|>", " green.<|im_end|>")
        tok = e.tokenizer
        encoded = encode(e, pair)
        assert list(encoded.prompt + encoded.chosen) == [*tok.encode("The sky is blue."), tok.eos_token_id]
        assert encoded.prompt_is_prefix


def test_raw_tokens_across_the_boundary() -> None:
    tok = tokenizer(None)
    whole = next(t for t in range(3, len(tok)) if len(tok.decode([t])) == 2 and tok.decode([t]).isalpha())
    first, second = tok.decode([whole])
    encoded = encode(encoder(tok), Pair(f"x\n{first}", second, "!"))
    assert not encoded.prompt_is_prefix
    assert list(encoded.prompt) == tok.encode(f"x\n{first}")  # what a completion is generated from
    assert tok.decode(list(encoded.chosen)) == f"{second}<|im_end|>"
    assert tok.decode(list(encoded.rejected)) == "!<|im_end|>"
    assert [kind.key for kind in encoding_warnings(encoded)] == ["token_spans_prompt_end"]


def test_raw_eos_is_not_doubled() -> None:
    assert texts(encoder(raw=True), Pair("q", "good<|im_end|>", "bad"))[1] == "good<|im_end|>"


def test_raw_with_a_tokenizer_that_frames_every_text() -> None:
    class Framing:
        bos_token_id, eos_token_id, eos_token = 0, 2, "<|im_end|>"
        inner = tokenizer(None)

        def encode(self, text: str) -> list[int]:
            return [0, *self.inner.encode(text), 2]

    encoded = encode(encoder(Framing()), Pair("q", "good", "bad"))
    inner = Framing.inner
    assert encoded.prompt == (0, *inner.encode("q"))
    assert encoded.chosen == (*inner.encode("good"), 2)
    assert encoded.prompt_is_prefix


def test_raw_prompt_without_tokens_begins_with_bos_or_eos() -> None:
    assert encode(encoder(tokenizer(None, bos_token="<|endoftext|>")), Pair("", "good", "bad")).prompt == (0,)
    assert encode(encoder(tokenizer(None)), Pair("", "good", "bad")).prompt == (2,)


def test_messages_need_a_template() -> None:
    with pytest.raises(RowError, match="need a chat template") as raised:
        encoder(tokenizer(None))(chat("q"), WHERE)
    assert (raised.value.kind, raised.value.where) == ("no template", WHERE)
    with pytest.raises(RowError, match="--raw takes texts"):
        encoder(raw=True)(chat("q"), WHERE)


def test_hh_dialogues_are_texts_again_without_a_template() -> None:
    start = "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nAssistant:"
    (pair,) = parse_pairs({"chosen": f"{start} good", "rejected": f"{start} bad"}, WHERE)
    assert texts(encoder(raw=True), pair) == (start, " good<|im_end|>", " bad<|im_end|>")
    assert texts(encoder(), pair) == texts(encoder(), chat("q", "a", "more"))


# Too long

LONG = chat("one " * 20, "two", "three", "four", "five", system="be brief", chosen="good good", rejected="bad")


def length(pair: Pair) -> int:
    return encode(encoder(), pair).num_tokens


def without(pair: Pair, turns: int) -> Pair:
    system, *rest = pair.prompt
    return Pair([system, *rest[turns:]], pair.chosen, pair.rejected)  # type: ignore[list-item]


def test_what_fits_is_left_alone() -> None:
    encoded = encode(encoder(max_length=length(LONG)), LONG)
    assert encoded == encode(encoder(), LONG) and not encoded.truncated


@pytest.mark.parametrize(
    ("limit", "turns"),
    [
        (length(LONG) - 1, 2),
        (length(without(LONG, 2)), 2),
        (length(without(LONG, 2)) - 1, 4),
        (length(without(LONG, 4)), 4),
    ],
)
def test_the_oldest_turns_go_first_and_the_system_message_stays(limit: int, turns: int) -> None:
    encoded = encode(encoder(max_length=limit), LONG)
    expected = encode(encoder(), without(LONG, turns))
    assert encoded.truncated and encoded.num_tokens <= limit
    assert (encoded.prompt, encoded.chosen, encoded.rejected) == (expected.prompt, expected.chosen, expected.rejected)


def test_then_the_last_turn_s_text_and_then_the_system_text() -> None:
    last = encode(encoder(), without(LONG, 4))
    prompt = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    for cut, system, user in ((1, "be brief", "ive"), (4, "be brief", ""), (6, "be bri", ""), (11, "", "")):
        encoded = encode(encoder(max_length=last.num_tokens - cut), LONG)
        assert encoded.num_tokens == last.num_tokens - cut
        assert CHATML_TOKENIZER.decode(list(encoded.prompt)) == prompt.format(system, user)
        assert (encoded.chosen, encoded.rejected) == (last.chosen, last.rejected)
        assert (encoded.prompt_tokens_cut, encoded.completion_tokens_cut) == (length(LONG) - encoded.num_tokens, (0, 0))


@pytest.mark.parametrize("e", [{"raw": True}, {}])
def test_an_answer_too_long_by_itself_loses_its_end(e: dict[str, Any]) -> None:
    pair = Pair("a question", "good " * 50, "bad")
    whole = encode(encoder(**e), pair)
    limit = len(whole.chosen) - 5
    encoded = encode(encoder(max_length=limit, **e), pair)
    assert encoded.truncated
    assert encoded.prompt == whole.prompt
    assert encoded.chosen == whole.chosen[: limit - len(whole.prompt)]
    assert encoded.rejected == whole.rejected
    assert (encoded.prompt_tokens_cut, encoded.completion_tokens_cut) == (0, (5 + len(whole.prompt), 0))
    assert len(encode(encoder(max_length=2, **e), pair).rejected) == 1


def test_a_template_that_wants_the_first_turns_loses_their_text() -> None:
    wants_three = "{% if messages | length < 5 %}{{ raise_exception('too few') }}{% endif %}" + CHATML
    e = encoder(tokenizer(wants_three), max_length=length(LONG) - 4)
    expected = CHATML_TOKENIZER.decode(list(encode(encoder(), LONG).prompt)).replace("one one ", "", 1)
    assert CHATML_TOKENIZER.decode(list(encode(e, LONG).prompt)).startswith(expected[:30])


def test_a_template_that_takes_no_other_text_loses_the_prompts_first_tokens() -> None:
    wants_all = "{% if messages[1].content != 'one ' * 20 %}{{ raise_exception('no') }}{% endif %}" + CHATML
    e = encoder(tokenizer(wants_all), max_length=length(LONG) - 5)
    assert encode(e, LONG).prompt == encode(encoder(), LONG).prompt[5:]


def test_bos_is_kept() -> None:
    tok = tokenizer(None, bos_token="<|endoftext|>")
    pair = Pair("<|endoftext|>" + "a question " * 9, "good", "bad")
    whole = encode(encoder(tok), pair)
    encoded = encode(encoder(tok, max_length=whole.num_tokens - 4), pair)
    assert encoded.prompt == (0, *whole.prompt[5:])


def test_drop_and_error() -> None:
    limit = length(LONG) - 1
    assert encoder(max_length=limit, overlong="drop")(LONG, WHERE) is None
    assert encoder(max_length=limit + 1, overlong="drop")(LONG, WHERE) is not None
    with pytest.raises(RowError, match=rf"tokens of prompt and \d+ of answer, over the {limit} of") as raised:
        encoder(max_length=limit, overlong="error")(LONG, WHERE)
    assert (raised.value.kind, raised.value.where) == ("too long", WHERE)


def test_no_warning_of_long_texts(capfd: pytest.CaptureFixture[str]) -> None:
    tok = tokenizer(model_max_length=10)
    encode(encoder(tok), LONG)
    assert capfd.readouterr().err == ""
