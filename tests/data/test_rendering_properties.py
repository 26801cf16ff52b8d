"""Whatever the conversation, the template and the length limit: what holds of the tokens that are trained."""

from __future__ import annotations

from itertools import compress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.examples import Pair
from tests.data.chat_templates import FAMILIES, Family, family_tokenizer

TOKENIZERS = {name: family_tokenizer(family) for name, family in FAMILIES.items()}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
OTHERS = ("USER", "TOOL2", "TOOL3", "SYSTEM")  # what only the turns of others contain
texts = st.text("ab \n<>é.", max_size=12)


@st.composite
def turns(draw: st.DrawFn, role: str, number: int) -> dict[str, Any]:
    """A message whose text begins and ends with its role and number."""
    marker = f"{role.upper()}{number}."
    return {"role": role, "content": marker + draw(texts) * draw(st.sampled_from([1, 1, 40])) + marker}


@st.composite
def answers(draw: st.DrawFn, family: Family, number: int) -> list[dict[str, Any]]:
    """An answer of one or several turns."""
    kind = draw(st.sampled_from(["one", "one", "several", "tool"] if family.tools else ["one", "several"]))
    messages = [draw(turns("assistant", number))]
    if kind == "several":
        messages += [draw(turns("user", number + 1)), draw(turns("assistant", number + 2))]
    if kind == "tool":
        function = {"name": "f", "arguments": {"x": f"CALL{number}"}}
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        messages = [call, {**draw(turns("tool", number + 1)), "name": "f"}, draw(turns("assistant", number + 2))]
    return messages


@st.composite
def pairs(draw: st.DrawFn, family: Family) -> Pair:
    prompt = [draw(turns("user", 100))]
    for i in range(draw(st.integers(0, 2))):
        prompt += [draw(turns("assistant", 101 + i)), draw(turns("user", 111 + i))]
    if family.system and draw(st.booleans()):
        prompt.insert(0, draw(turns("system", 120)))
    chosen, rejected = draw(answers(family, 200)), draw(answers(family, 300))
    if draw(st.booleans()):  # an answer's first turns may be those of the other
        shared = [draw(turns("assistant", 130)), draw(turns("user", 140))]
        chosen, rejected = [*shared, *chosen], [*shared, *rejected]
    tools = TOOLS if family.tools and draw(st.booleans()) else None
    kwargs = {"enable_thinking": False} if "enable_thinking" in family.template and draw(st.booleans()) else {}
    return Pair(prompt, chosen, rejected, tools, kwargs)


def encode(name: str, pair: Pair, max_length: int = 10**6) -> EncodedExample:
    encoder = ExampleEncoder(TOKENIZERS[name], max_length=max_length, overlong="truncate", raw=False)
    encoded = encoder(pair)
    assert encoded is not None
    return encoded


def trained_texts(name: str, encoded: EncodedExample) -> list[str]:
    ids = (compress(ids, encoded.mask(i)) for i, ids in enumerate(encoded.completions))
    return [TOKENIZERS[name].decode(list(tokens)) for tokens in ids]


def template_options(pair: Pair) -> dict[str, Any]:
    return {"return_dict": False, **pair.template_kwargs, **({"tools": pair.tools} if pair.tools else {})}


def generation_ids(name: str, pair: Pair) -> list[int]:
    """The prompt's ids, rendered without the code that is tested."""
    chosen, rejected = pair.completions
    prompt = [*pair.prompt, *(chosen[:2] if chosen[:2] == rejected[:2] and len(chosen) > 2 < len(rejected) else [])]
    return TOKENIZERS[name].apply_chat_template(prompt, add_generation_prompt=True, **template_options(pair))


def check_trained_tokens(name: str, data: st.DataObject) -> None:
    family, tokenizer = FAMILIES[name], TOKENIZERS[name]
    pair = data.draw(pairs(family))
    whole = encode(name, pair)

    # The prompt is what a completion is generated from, with one BOS.
    assert list(whole.prompt) == generation_ids(name, pair)
    if tokenizer.bos_token_id is not None:
        assert whole.prompt[0] == tokenizer.bos_token_id != whole.prompt[1]

    for answer, trained in zip(pair.completions, trained_texts(name, whole), strict=True):
        # All of the assistant's turns and nothing else is trained, and it ends its turn once.
        messages: list[dict[str, Any]] = list(answer)  # type: ignore[arg-type]
        own = [m["content"] for m in messages if m["role"] == "assistant" and "ASSISTANT130." not in m["content"]]
        assert [trained.count(text[:13]) for text in own if text] == [2 for text in own if text]
        assert trained.count('"CALL') == sum("tool_calls" in message for message in messages)
        assert not [other for other in (*OTHERS, "ASSISTANT1", *family.headers) if other in trained]
        assert trained.endswith(family.end) and not trained.removesuffix(family.end).endswith(family.end)
    check_whole_ids(name, pair, whole)

    # A prompt that fits loses nothing; whatever is cut, the limit holds and what is left is the assistant's.
    max_length = data.draw(st.integers(2, 2 * whole.num_tokens))
    cut = encode(name, pair, max_length)
    assert cut.num_tokens <= max_length
    if len(whole.prompt) <= max_length // 2 or whole.num_tokens <= max_length:
        assert cut.prompt == whole.prompt
        assert cut.prompt_tokens_cut == 0
    assert cut.lengths_before_cut == (len(whole.prompt), *map(len, whole.completions))
    for trained in trained_texts(name, cut):
        assert trained
        assert not [other for other in (*OTHERS, *family.headers) if other in trained]


def check_whole_ids(name: str, pair: Pair, encoded: EncodedExample) -> None:
    """Prompt and completion are the rendered conversation, where that begins with the prompt."""
    if not encoded.prompt_is_prefix:
        return
    tokenizer = TOKENIZERS[name]
    for answer, ids in zip(pair.completions, encoded.completions, strict=True):
        whole = tokenizer.apply_chat_template([*pair.prompt, *answer], **template_options(pair))
        assert list(encoded.prompt + ids) in (whole, [*whole, tokenizer.eos_token_id])


def randomly(max_examples: int) -> settings:
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("name", FAMILIES)
@randomly(12)
@given(data=st.data())
def test_what_holds_of_trained_tokens(name: str, data: st.DataObject) -> None:
    check_trained_tokens(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@randomly(300)
@given(data=st.data())
def test_what_holds_of_many_trained_tokens(name: str, data: st.DataObject) -> None:
    check_trained_tokens(name, data)
