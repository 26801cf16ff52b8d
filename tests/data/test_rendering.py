"""Rows as people have them, under templates of many families: the right token ids, and warnings where rows change."""

from __future__ import annotations

import time
from itertools import compress, groupby
from typing import Any

import pytest

from mlx_dpo.data import chat_rendering
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.encoding_warnings import encoding_warnings
from mlx_dpo.data.examples import Completion, Pair, Prompt
from mlx_dpo.data.row_parsing import parse_examples, parse_pairs
from mlx_dpo.errors import RowError, UserError, Where
from tests.data import chat_templates as families
from tests.data.chat_templates import Family, family_tokenizer

WHERE = Where("rows.jsonl", 3)
CHATML = families.CHATML.template
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"city": "Rome"}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": {}}}]
RESULT = {"role": "tool", "name": "look_up", "content": "20 C"}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def make_encoder(family: Family = families.CHATML, **options: Any) -> ExampleEncoder:
    options = {"max_length": 4096, "overlong": "truncate", "raw": False, **options}
    return ExampleEncoder(family_tokenizer(family), **options)


def encode(encoder: ExampleEncoder, example: Any) -> EncodedExample:
    encoded = encoder(example, WHERE)
    assert encoded is not None
    return encoded


def text(encoder: ExampleEncoder, ids: Any) -> str:
    decoded: str = encoder.tokenizer.decode(list(ids))
    return decoded


def marked(encoder: ExampleEncoder, encoded: EncodedExample, i: int = 0) -> str:
    """A completion with its trained tokens in «»."""
    runs = groupby(zip(encoded.completions[i], encoded.mask(i), strict=True), key=lambda item: item[1])
    parts = [(is_trained, text(encoder, [token for token, _ in run])) for is_trained, run in runs]
    return "".join(f"«{part}»" if is_trained else part for is_trained, part in parts)


def warned(encoded: EncodedExample) -> list[str]:
    return [kind.key for kind in encoding_warnings(encoded)]


# Truncation


def words(count: int) -> str:
    """A text of so many tokens under the bundled tokenizer."""
    return "one" + " one" * (count - 1)


def test_a_prompt_that_fits_is_not_cut_for_a_long_answer() -> None:
    pair = Pair(words(20), words(5000), words(600))
    whole = encode(make_encoder(max_length=10**6), pair)
    assert (len(whole.prompt), *map(len, whole.completions)) == (28, 5002, 602)
    encoded = encode(make_encoder(max_length=2048), pair)
    assert encoded.prompt == whole.prompt
    assert encoded.chosen == whole.chosen[:2020]
    assert encoded.rejected == whole.rejected
    assert (encoded.prompt_tokens_cut, encoded.completion_tokens_cut) == (0, (5002 - 2020, 0))
    assert encoded.lengths_before_cut == (28, 5002, 602)
    assert warned(encoded) == ["completion_cut"]


def test_short_limit_and_long_answer() -> None:
    pair = Pair("Why do magnets pull iron?", "iron " * 80, "No.")
    whole, encoded = encode(make_encoder(), pair), encode(make_encoder(max_length=64), pair)
    assert encoded.prompt == whole.prompt
    assert encoded.chosen == whole.chosen[: 64 - len(whole.prompt)]
    assert encoded.rejected == whole.rejected


@pytest.mark.parametrize(
    ("prompt", "chosen", "expected", "warnings"),
    [
        (1500, 100, 1508, []),
        (1010, 3000, 1018, ["completion_cut"]),
        (1500, 1000, 1046, ["prompt_cut"]),
        (4000, 3000, 1024, ["prompt_cut", "completion_cut"]),
    ],
)
def test_a_prompt_keeps_half_of_the_limit_and_what_the_answers_leave(
    prompt: int, chosen: int, expected: int, warnings: list[str]
) -> None:
    encoded = encode(make_encoder(max_length=2048), Pair(words(prompt), words(chosen), "No."))
    assert len(encoded.prompt) == expected
    assert len(encoded.chosen) == min(chosen + 2, 2048 - expected)
    assert warned(encoded) == warnings


def test_headers_and_system_text_outlast_the_question() -> None:
    encoder = make_encoder(max_length=60)
    pair = Pair([{"role": "system", "content": "be brief"}, user(words(200))], [assistant("Yes.")], [assistant("No.")])
    prompt = text(encoder, encode(encoder, pair).prompt)
    assert prompt.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
    assert prompt.endswith("one one one<|im_end|>\n<|im_start|>assistant\n")


def test_context_in_an_answer_leaves_room_for_what_is_trained() -> None:
    encoder = make_encoder(families.CHATML_TOOLS, max_length=60, train_on="last")
    turns = [assistant("", tool_calls=[CALL]), {**RESULT, "content": words(200)}, assistant("It is warm.")]
    encoded = encode(encoder, Pair([user("q")], turns, [assistant("No.")]))
    assert len(encoded.prompt) + len(encoded.chosen) == 60
    assert text(encoder, compress(encoded.chosen, encoded.mask(0))) == "It is warm.<|im_end|>\n"


# Conversations that part early


def test_user_turns_that_differ_are_context() -> None:
    row = {
        "chosen": [user("One?"), assistant("First."), user("More of iron?"), assistant("Good.")],
        "rejected": [user("One?"), assistant("First."), user("Something else?"), assistant("Bad.")],
    }
    (pair,) = parse_pairs(row, WHERE)
    encoder = make_encoder()
    encoded = encode(encoder, pair)
    assert text(encoder, encoded.prompt) == "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
    turn = "First.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert marked(encoder, encoded, 0) == turn.format("More of iron?") + "«Good.<|im_end|>\n»"
    assert marked(encoder, encoded, 1) == turn.format("Something else?") + "«Bad.<|im_end|>\n»"
    whole = encoder.tokenizer.apply_chat_template(row["chosen"], return_dict=False)
    assert list(encoded.prompt + encoded.chosen) == whole
    assert warned(encoded) == ["context_in_completion"]


def test_all_assistant_turns_behind_the_parting_point_are_trained_or_the_last() -> None:
    chosen = [assistant("First."), user("More?"), assistant("Good.")]
    rejected = [assistant("Second."), user("More?"), assistant("Bad."), user("And?"), assistant("Worse.")]
    pair = Pair([user("One?")], chosen, rejected)
    encoder = make_encoder()
    assert marked(encoder, encode(encoder, pair)) == (
        "«First.<|im_end|>\n»<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n«Good.<|im_end|>\n»"
    )
    assert marked(encoder, encode(encoder, pair), 1) == (
        "«Second.<|im_end|>\n»<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n«Bad.<|im_end|>\n»"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n«Worse.<|im_end|>\n»"
    )
    last = make_encoder(train_on="last")
    assert marked(last, encode(last, pair)).count("«") == 1
    assert marked(last, encode(last, pair)).endswith("assistant\n«Good.<|im_end|>\n»")


def test_turns_that_both_answers_begin_with_belong_to_the_prompt() -> None:
    shared = [assistant("First."), user("More?")]
    encoder = make_encoder()
    encoded = encode(encoder, Pair([user("One?")], [*shared, assistant("Good.")], [*shared, assistant("Bad.")]))
    expected = encode(encoder, Pair([user("One?"), *shared], [assistant("Good.")], [assistant("Bad.")]))
    assert encoded == expected and encoded.completion_masks is None


QWEN_RESULT = "<|im_start|>user\n<tool_response>\n20 C\n</tool_response><|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("family", "call", "result"),
    [
        (
            families.CHATML_TOOLS,
            '«<tool_call>\n{"name": "look_up", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n»',
            QWEN_RESULT + "«Warm.<|im_end|>\n»",
        ),
        (
            families.LLAMA3,
            '«{"name": "look_up", "arguments": {"city": "Rome"}}<|eom_id|>»',
            "<|start_header_id|>ipython<|end_header_id|>\n\n20 C<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n«Warm.<|eot_id|>»",
        ),
        (
            families.MISTRAL,
            '«[TOOL_CALLS] [{"name": "look_up", "arguments": {"city": "Rome"}}]</s>»',
            "[TOOL_RESULTS] 20 C[/TOOL_RESULTS]« Warm.</s>»",
        ),
        (
            families.QWEN3,
            '«<tool_call>\n{"name": "look_up", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n»',
            QWEN_RESULT + "«<think>\n\n</think>\n\nWarm.<|im_end|>\n»",
        ),
        (
            families.HARMONY,
            '« to=functions.look_up<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>»',
            '<|start|>functions.f to=assistant<|channel|>commentary<|message|>"20 C"<|end|><|start|>assistant'
            "«<|channel|>final<|message|>Warm.<|return|>»",
        ),
    ],
)
def test_tool_calls_are_trained_and_results_are_context(family: Family, call: str, result: str) -> None:
    turns = [assistant("", tool_calls=[CALL]), RESULT, assistant("Warm.")]
    encoder = make_encoder(family)
    encoded = encode(encoder, Pair([user("Rome?")], turns, [assistant("Cold.")], TOOLS))
    assert marked(encoder, encoded) == call + result
    assert not {"ignored_tool_calls", "prompt_not_prefix"} & set(warned(encoded))


def test_results_are_context_where_the_template_leaves_out_the_call() -> None:
    turns = [assistant("", tool_calls=[CALL]), RESULT, assistant("Warm.")]
    for family in (families.CHATML, families.PHI3, families.PHI4):
        encoder = make_encoder(family)
        encoded = encode(encoder, Pair([user("Rome?")], turns, [assistant("Cold.")], TOOLS))
        assert "20 C" not in text(encoder, compress(encoded.chosen, encoded.mask(0)))
        assert {"ignored_tools", "ignored_tool_calls", "context_in_completion"} <= set(warned(encoded))


def test_a_template_that_hides_the_turns_is_refused() -> None:
    hides = "{% for m in messages %}{{ m.content | upper }}{% endfor %}<|im_end|>"
    pair = Pair([user("One?")], [assistant("A"), user("b"), assistant("C")], [assistant("D")])
    with pytest.raises(RowError, match="hides which tokens are the assistant's"):
        make_encoder(Family(hides))(pair, WHERE)


# Templates that think


def test_the_prompt_is_the_one_that_is_generated_from() -> None:
    encoder = make_encoder(families.THINK_WITHOUT_BLOCK)
    encoded = encode(encoder, Pair("Why?", "hm\n</think>\n\nA.", "so\n</think>\n\nB."))
    generation = encoder.tokenizer.apply_chat_template([user("Why?")], add_generation_prompt=True, return_dict=False)
    assert list(encoded.prompt) == generation
    assert text(encoder, encoded.prompt).endswith("<|im_start|>assistant\n<think>\n")
    assert text(encoder, encoded.chosen) == "hm\n</think>\n\nA.<|im_end|>\n"
    assert warned(encoded) == ["prompt_not_prefix"]


def test_the_start_of_an_answer_is_not_taken_for_the_generation_prompt() -> None:
    encoder = make_encoder(families.THINK_WITHOUT_BLOCK)  # "<" begins both the answer and the prompt's <think>
    assert text(encoder, encode(encoder, Pair("Why?", "<b>A</b>", "<tt>")).chosen) == "<b>A</b><|im_end|>\n"


def test_an_open_block_is_continued_with_the_tokens_of_generation() -> None:
    encoder = make_encoder(families.QWEN35)
    encoded = encode(encoder, Pair("Why?", "A.", "B."))
    generation = encoder.tokenizer.apply_chat_template([user("Why?")], add_generation_prompt=True, return_dict=False)
    assert list(encoded.prompt) == generation
    assert text(encoder, encoded.prompt).endswith("assistant\n<think>\n")
    assert text(encoder, encoded.chosen) == "\n</think>\n\nA.<|im_end|>\n"


def test_sides_are_compared_as_tokens() -> None:
    pair = Pair("q", "<think>good</think>A.", "<think>bad</think>A.")
    for family in (families.R1, families.R1_FIRST):
        encoded = encode(make_encoder(family), pair)
        assert encoded.chosen == encoded.rejected
        assert {"equal_tokens", "thinking_lost"} <= set(warned(encoded))
    encoded = encode(make_encoder(families.QWEN3), pair)
    assert encoded.chosen != encoded.rejected and warned(encoded) == []


def test_empty_blocks_of_thinking_are_counted_and_can_be_turned_off() -> None:
    pair = Pair("Why?", "A.", "B.")
    encoder = make_encoder(families.QWEN3)
    assert text(encoder, encode(encoder, pair).chosen) == "<think>\n\n</think>\n\nA.<|im_end|>\n"
    assert warned(encode(encoder, pair)) == ["empty_thinking"]
    off = make_encoder(families.QWEN3, template_kwargs={"enable_thinking": False})
    encoded = encode(off, pair)
    assert text(off, encoded.prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert text(off, encoded.chosen) == "A.<|im_end|>\n" and warned(encoded) == []
    (row,) = parse_pairs({"prompt": "Why?", "chosen": "A.", "rejected": "B.", "enable_thinking": False}, WHERE)
    assert encode(encoder, row) == encoded
    again = Pair("Why?", "A.", "B.", None, {"enable_thinking": True})  # a row's value takes precedence
    assert encode(off, again) == encode(encoder, pair)


def test_enable_thinking_is_true_or_false() -> None:
    with pytest.raises(RowError, match="must be true or false"):
        parse_pairs({"prompt": "Why?", "chosen": "A.", "rejected": "B.", "enable_thinking": "no"}, WHERE)


def test_thinking_of_earlier_turns_and_contradictions_are_counted() -> None:
    encoder = make_encoder(families.QWEN3)
    earlier = [user("One?"), assistant("First.", reasoning_content="long thoughts"), user("More?")]
    chosen, rejected = assistant("Good.", reasoning_content="why"), assistant("Bad.", reasoning_content="how")
    assert warned(encode(encoder, Pair(earlier, [chosen], [rejected]))) == ["earlier_thinking_lost"]
    encoded = encode(encoder, Pair([user("One?")], [chosen], [rejected], None, {"enable_thinking": False}))
    assert "thinking_contradiction" in warned(encoded)
    assert text(encoder, encoded.prompt).endswith("<think>\n\n</think>\n\n")
    assert text(encoder, encoded.chosen) == "<think>\nwhy\n</think>\n\nGood.<|im_end|>\n"


def test_an_answer_that_does_not_close_the_prompts_thinking_is_counted() -> None:
    assert "unclosed_thinking" in warned(encode(make_encoder(families.R1), Pair("q", "Yes.", "No.")))


# What a template ignores


def test_an_answer_of_which_nothing_is_rendered_is_refused() -> None:
    pair = Pair([user("Rome?")], [assistant("", tool_calls=[CALL])], [assistant("No.")], TOOLS)
    for family in (families.CHATML, families.PHI3, families.LLAMA2, families.GEMMA, families.R1):
        with pytest.raises(RowError, match="renders nothing of an answer, which has `tool_calls`") as raised:
            make_encoder(family)(pair, WHERE)
        assert (raised.value.kind, raised.value.where) == ("nothing rendered", WHERE)
    for family in (families.CHATML_TOOLS, families.LLAMA3, families.MISTRAL, families.QWEN3, families.GLM):
        encode(make_encoder(family), pair)
    thought = Pair([user("q")], [assistant("", reasoning_content="hm")], [assistant("No.")])
    with pytest.raises(RowError, match="which has `reasoning_content`"):
        make_encoder(families.R1_FIRST)(thought, WHERE)


def test_ignored_fields_are_found_by_rendering_without_them() -> None:
    no_system = Family("{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML)
    prompt = [{"role": "system", "content": "Be brief."}, user("q")]
    chosen, rejected = assistant("A.", reasoning_content="a"), assistant("B.", reasoning_content="t")
    pair = Pair(prompt, [chosen], [rejected], TOOLS)
    assert warned(encode(make_encoder(no_system), pair)) == [
        *("thinking_lost", "ignored_tools", "ignored_reasoning_content", "ignored_system")
    ]
    assert warned(encode(make_encoder(families.QWEN3), pair)) == []


def test_ignored_fields_are_looked_for_on_a_few_rows_only() -> None:
    encoder = make_encoder()
    rendered = 0
    apply = encoder.tokenizer.apply_chat_template

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return apply(*arguments, **options)

    encoder.tokenizer.apply_chat_template = counting
    for i in range(20):
        assert warned(encode(encoder, Pair(f"q{i}", "A.", "B.", TOOLS))) == ["ignored_tools"]
    assert rendered == 20 * 3 + 3 * 2 + 1  # prompt and answers; three rows without tools; text against ids, once


def test_texts_with_special_tokens_are_counted() -> None:
    rendered = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    pair = Pair(rendered, "A.<|im_end|>", "B.<|im_end|>")
    assert warned(encode(make_encoder(), pair)) == ["special_tokens"]
    raw = make_encoder(raw=True)
    assert warned(encode(raw, pair)) == []
    assert text(raw, encode(raw, pair).chosen) == "A.<|im_end|>"


# Raw texts


class BosTokenizer:
    """A tokenizer that begins every text with BOS."""

    def __init__(self, family: Family) -> None:
        self.inner = family_tokenizer(family)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = self.inner.encode(text, add_special_tokens=False)
        return [self.inner.bos_token_id, *ids] if add_special_tokens else ids


def test_raw_texts_have_one_bos() -> None:
    encoder = ExampleEncoder(BosTokenizer(families.MISTRAL), max_length=512, overlong="error", raw=True)
    with_bos = encode(encoder, Pair("<s>Why a magnet?", " It pulls.", " Stop."))
    without = encode(encoder, Pair("Why a magnet?", " It pulls.", " Stop."))
    assert with_bos.prompt == without.prompt and with_bos.completions == without.completions
    assert with_bos.prompt.count(encoder.tokenizer.bos_token_id) == 1


def test_a_raw_prompt_that_ends_in_a_space() -> None:
    encoder = make_encoder(raw=True)
    encoded = encode(encoder, Pair("Magnets pull ", "iron.", "wood."))
    assert list(encoded.prompt) == encoder.tokenizer.encode("Magnets pull ")
    assert text(encoder, encoded.chosen) == "iron.<|im_end|>"
    (kind,) = encoding_warnings(encoded)
    assert "a token spans the prompt's end" in kind.message and "without a space" in kind.hint


# Errors of templates


def test_a_template_that_takes_no_system_turn_says_what_helps() -> None:
    prompt = [{"role": "system", "content": "Be brief."}, user("q")]
    with pytest.raises(RowError, match="System role not supported") as raised:
        make_encoder(families.GEMMA)(Pair(prompt, [assistant("A.")], [assistant("B.")]), WHERE)
    assert raised.value.hint and "mlx-dpo data fix --model" in raised.value.hint


def test_a_template_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_rendering, "RENDER_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    encoder, start = make_encoder(Family(loop + CHATML)), time.monotonic()
    with pytest.raises(RowError, match="has not finished this row") as raised:
        encoder(Pair("x", "A.", "B."), WHERE)
    assert raised.value.where == WHERE and time.monotonic() - start < 5


def test_settings_can_t_replace_messages() -> None:
    with pytest.raises(UserError, match="can't set messages"):
        ChatRenderer(family_tokenizer(families.CHATML), template_kwargs={"messages": []})


# One rendering


@pytest.mark.parametrize(
    ("family", "options", "example"),
    [
        (families.QWEN3, {}, Pair("Rome?", "A.", "B.", TOOLS)),
        (families.QWEN3, {}, Pair("Rome?", "A.", "B.", None, {"enable_thinking": False})),
        (families.QWEN3, {"template_kwargs": {"enable_thinking": False}}, Pair("Rome?", "A.", "B.")),
        (families.QWEN35, {}, Completion("Rome?", "A.", True)),
        (families.CHATML, {}, Pair([user("Rome?"), assistant("It is ")], "warm.", "cold.")),
        (families.CHATML, {"raw": True}, Pair("Rome is", " warm.", " cold.")),
        (families.LLAMA2, {}, Pair("Rome?", "A.", "B.")),
    ],
)
def test_prompts_of_generation_are_those_of_training(family: Family, options: dict[str, Any], example: Any) -> None:
    encoder = make_encoder(family, **options)
    assert encode(encoder, example).prompt == encoder.renderer.prompt_ids(example)
    alone = Prompt(example.prompt, example.tools, example.template_kwargs, example.is_hh_dialogue)
    assert encode(encoder, example).prompt == encoder.renderer.prompt_ids(alone)


def test_dialogues_without_a_template_are_rendered_as_in_training() -> None:
    start = "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nAssistant:"
    (pair,) = parse_examples({"chosen": f"{start} good", "rejected": f"{start} bad"}, WHERE)
    tokenizer = family_tokenizer(families.CHATML)
    tokenizer.chat_template = None
    encoder = ExampleEncoder(tokenizer, max_length=512, overlong="error", raw=False)
    assert list(encode(encoder, pair).prompt) == tokenizer.encode(start)
    assert encode(encoder, pair).prompt == encoder.renderer.prompt_ids(pair)
