"""Chat templates of model families, written from the formats that they document, on the bundled tokenizer.

Each has its special tokens added to the bundled tokenizer, which splits text into bytes and words as real ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from mlx_dpo.demo import MODEL


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        template: its chat template.
        special: special tokens, beside the bundled tokenizer's.
        plain: added tokens that are not special.
        bos, eos: texts; None for the bundled tokenizer's.
        end: the text that ends a completion.
        headers: texts that are never the assistant's own.
        system, tools: whether the template takes system turns, and renders tools and tool calls.
    """

    template: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    bos: str | None = None
    eos: str | None = None
    end: str = "<|im_end|>\n"
    headers: tuple[str, ...] = ("<|im_start|>",)
    system: bool = True
    tools: bool = False


def family_tokenizer(family: Family) -> Any:
    """The bundled tokenizer as a tokenizer of a family."""
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    tokenizer.add_tokens(list(family.plain))
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    if family.bos is not None:
        tokenizer.bos_token = family.bos
    if family.eos is not None:
        tokenizer.eos_token = family.eos
    tokenizer.chat_template = family.template
    return tokenizer


CHATML = Family(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOOLS = Family(
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if m.content or not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    headers=("<|im_start|>", "tool_response"),
    tools=True,
)
LLAMA2 = Family(
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set system = none %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content if loop.first and system is not none "
    "else m.content %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    special=("<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    end=" </s>",
    headers=("[INST]", "<s>"),
)
LLAMA3 = Family(
    "{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n{{ tools | tojson }}<|eot_id|>"
    "{% endif %}{% for m in messages %}"
    "<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}<|eom_id|>"
    "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    end="<|eot_id|>",
    headers=("<|start_header_id|>", "ipython"),
    tools=True,
)
GEMMA = Family(
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos="<eos>",
    end="<end_of_turn>\n",
    headers=("<start_of_turn>",),
    system=False,
)
PHI3 = Family(
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    eos="<|endoftext|>",
    end="<|end|>\n<|endoftext|>",
    headers=("<|user|>", "<|assistant|>"),
)
PHI4 = Family(
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
    special=("<|im_sep|>",),
    end="<|im_end|>",
    headers=("<|im_start|>", "<|im_sep|>"),
)
_MISTRAL_TOOLS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
MISTRAL = Family(
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and m == users[-1] %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{{ m.tool_calls[0].function | tojson }}]{{ eos_token }}"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
    "{% else %}{{ raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}{% endfor %}",
    special=("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", *_MISTRAL_TOOLS),
    bos="<s>",
    eos="</s>",
    end="</s>",
    headers=("[INST]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
    system=False,
    tools=True,
)
_LAST_USER = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
_SPLIT_THINKING = (
    "{% set content = m.content %}{% set thinking = m.reasoning_content or '' %}"
    "{% if not thinking and '</think>' in content %}"
    "{% set thinking = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
_QWEN_CALLS = (
    "{% for c in m.tool_calls or [] %}{% if content or not loop.first %}{{ '\n' }}{% endif %}"
    "<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
)
_QWEN_START = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    + _LAST_USER
    + "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% elif m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% else %}" + _SPLIT_THINKING
)
_QWEN_NO_THINKING = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
QWEN3 = Family(
    _QWEN_START + "<|im_start|>assistant\n{% if loop.index0 > ns.last and (loop.last or thinking) %}"
    "<think>\n{{ thinking.strip('\n') }}\n</think>\n\n{{ content.lstrip('\n') }}{% else %}{{ content }}{% endif %}"
    + _QWEN_CALLS
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    + _QWEN_NO_THINKING
    + "{% endif %}{% endif %}",
    plain=("<think>", "</think>"),
    headers=("<|im_start|>", "tool_response"),
    tools=True,
)
QWEN35 = Family(
    _QWEN_START + "<|im_start|>assistant\n{% if loop.index0 > ns.last %}"
    "<think>\n{{ thinking | trim }}\n</think>\n\n{% endif %}{{ content | trim }}"
    + _QWEN_CALLS
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    + _QWEN_NO_THINKING
    + "{% else %}<think>\n{% endif %}{% endif %}",
    plain=("<think>", "</think>"),
    headers=("<|im_start|>", "tool_response"),
    tools=True,
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|end_of_sentence|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{THINK}{% endif %}"
)
_R1_TOKENS = ("<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>")
R1 = Family(  # the later kind: its generation prompt begins to think
    _R1.replace("{THINK}", "<think>\n"),
    special=_R1_TOKENS,
    plain=("<think>", "</think>"),
    bos=_R1_TOKENS[0],
    eos=_R1_TOKENS[1],
    end=_R1_TOKENS[1],
    headers=("<|User|>", "<|Assistant|>"),
)
R1_FIRST = Family(
    _R1.replace("{THINK}", ""),
    special=_R1_TOKENS,
    plain=("<think>", "</think>"),
    bos=_R1_TOKENS[0],
    eos=_R1_TOKENS[1],
    end=_R1_TOKENS[1],
    headers=("<|User|>", "<|Assistant|>"),
)
THINK_WITHOUT_BLOCK = Family(  # only the generation prompt opens a block
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
HARMONY = Family(
    "<|start|>system<|message|>You are ChatGPT.\n# Valid channels: analysis, commentary, final.<|end|>"
    "{% if messages[0].role == 'system' %}<|start|>developer<|message|># Instructions\n\n{{ messages[0].content }}"
    "<|end|>{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% elif m.role == 'tool' %}<|start|>functions.f to=assistant<|channel|>commentary<|message|>"
    "{{ m.content | tojson }}<|end|>"
    "{% elif m.tool_calls %}<|start|>assistant to=functions.{{ m.tool_calls[0].function.name }}<|channel|>commentary"
    " json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}{% if loop.last and m.reasoning_content %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
    eos="<|return|>",
    end="<|return|>",
    headers=("<|start|>user", "functions.f to=assistant", "<|start|>system"),
    tools=True,
)
_KIMI_CALLS = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
KIMI = Family(
    "{% for m in messages %}<|im_{{ m.role if m.role != 'tool' else 'system' }}|>{{ m.role }}<|im_middle|>"
    "{{ m.content }}{% if m.tool_calls %}<|tool_calls_section_begin|>{{ m.tool_calls[0].function | tojson }}"
    "<|tool_calls_section_end|>{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}",
    special=("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", *_KIMI_CALLS),
    end="<|im_end|>",
    headers=("<|im_user|>", "<|im_system|>", "<|im_middle|>"),
    tools=True,
)
GLM = Family(
    "[gMASK]<sop>{% if tools %}<|system|>\n{{ tools | tojson }}{% endif %}" + _LAST_USER + "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|observation|>\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% elif m.role == 'assistant' %}" + _SPLIT_THINKING + "<|assistant|>\n"
    "{% if loop.index0 > ns.last and thinking %}<think>{{ thinking.strip() }}</think>{% else %}<think></think>"
    "{% endif %}{% if content.strip() %}{{ '\n' + content.strip() }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n' }}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n' }}<think></think>{% endif %}{% endif %}",
    special=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    plain=("<think>", "</think>"),
    eos="<|endoftext|>",
    end="<|endoftext|>",
    headers=("<|assistant|>", "tool_response"),
    tools=True,
)

FAMILIES = {name.lower(): value for name, value in list(globals().items()) if isinstance(value, Family)}
