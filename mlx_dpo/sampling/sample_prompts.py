"""`sample`: completions of a file's prompts, as rows that `label`, `score` and `train` read."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import adapter_base_model, adapter_digest, apply_adapter, require_policy
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.conversations import TextOrMessages, as_messages
from mlx_dpo.data.encoded_example import TokenIds
from mlx_dpo.data.examples import Example, Prompt
from mlx_dpo.data.messages import format_hh_dialogue
from mlx_dpo.data.prompt_files import PromptRow, read_prompt_rows
from mlx_dpo.errors import RowError, UserError
from mlx_dpo.forward.device import keep_weights_resident
from mlx_dpo.forward.model_loading import find_model_folder, load_model, load_tokenizer, no_model_error
from mlx_dpo.forward.path_agreement import count_logits
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.lineage.weights_digest import weights_digest
from mlx_dpo.sampling.batched_sampling import DEFAULT_BATCH_SIZE, sample_completions
from mlx_dpo.sampling.completions import SampledCompletion, SamplingParams
from mlx_dpo.sampling.sample_file import SampleFile
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

MIN_GROUP_PROMPTS = 32  # prompts that are sampled, and written, together
BATCHES_IN_GROUP = 4  # at least, so that places in the batch are seldom empty
KEPT_COLUMNS = ("id", "category", "subset", "source")  # of a prompt's row


def sample(
    model: str | None,
    prompts: str,
    output: str | Path,
    params: SamplingParams,
    *,
    adapter_path: str | Path | None = None,
    n: int = 1,
    batch_size: int | None = None,
    raw: bool = False,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Write completions of each prompt of a file to a JSONL file, a row for each prompt.

    A row has `prompt`, `completions`, `token_counts`, `finish_reasons` ("stop" or "length") and `seed`: `params.seed`
    plus the number of the prompt, from 0. The prompt alone has the same completions with that seed. Rows also have
    `tools` and `chat_template_kwargs` where the prompt has them, and the columns `KEPT_COLUMNS`.

    Prompts are sampled in groups, and a group is written as it is finished. If the file exists and was written with the
    same settings, only missing groups are sampled, so that the file is the same however often it was interrupted.

    Args:
        model: folder or Hub id; None for the adapter's own model.
        prompts: a .txt file with a prompt a line, or rows of any format.
        output: the file to write; the settings are kept beside it, in a file with `.sample.json` after its name.
        params: how completions are sampled.
        adapter_path: adapter folder to load onto the model.
        n: completions of each prompt.
        batch_size: most sequences side by side; by default as many as fit in memory, and at most 32.
        raw: take texts as they are, though there is a chat template.
        template_kwargs: variables for the chat template; those of a prompt take precedence.
        progress: receives the phases.

    Returns:
        `prompts`, `completions`, `tokens` and `finish_reasons`, their counts in the whole file; `seconds` and
        `tokens_per_second` of the sampling in this call, None where nothing was left to sample.

    Raises:
        UserError: the prompts, the model or the adapter can't be read, or the file has other settings.
    """
    if n < 1 or (batch_size is not None and batch_size < 1):
        raise UserError("must be at least 1", field="n" if n < 1 else "batch_size")
    if model is None and adapter_path is None:
        raise no_model_error()
    progress.begin("Reading the prompts")
    if adapter_path is not None:
        require_policy(adapter_path)
    model = model or adapter_base_model(str(adapter_path))
    rows = read_prompt_rows(prompts)
    renderer = ChatRenderer(load_tokenizer(model), raw=raw, template_kwargs=template_kwargs)
    prompt_ids = [_prompt_ids(renderer, row) for row in rows]
    group_size = max(MIN_GROUP_PROMPTS, math.ceil(BATCHES_IN_GROUP * (batch_size or DEFAULT_BATCH_SIZE) / n))
    settings = {
        "model": weights_digest(find_model_folder(model)),
        "adapter": None if adapter_path is None else adapter_digest(adapter_path),
        "prompts": hashlib.blake2b(json.dumps(prompt_ids).encode(), digest_size=16).hexdigest(),
        "n": n,
        **asdict(params),
        "batch_size": batch_size,
    }
    tally = _Tally()
    with SampleFile(output, settings, group_size) as file:
        tally.add(file.resume(len(rows)))
        tally.num_resumed_tokens = tally.num_tokens
        groups = [range(len(rows))[i : i + group_size] for i in range(tally.num_prompts, len(rows), group_size)]
        if groups:
            progress.begin("Loading the model")
            policy = _load_policy(model, adapter_path, renderer.tokenizer)
            progress.begin("Sampling", "completions")
        for group in groups:
            start = time.perf_counter()
            completions = sample_completions(
                policy,
                renderer.tokenizer,
                [prompt_ids[i] for i in group],
                replace(params, seed=0),
                n=n,
                prompt_seeds=[params.seed + i for i in group],
                batch_size=batch_size,
                on_progress=_shifted(progress, group[0] * n, len(rows) * n),
            )
            tally.seconds += time.perf_counter() - start
            lines = [_line(rows[i], params.seed + i, own, renderer) for i, own in zip(group, completions, strict=True)]
            file.write(lines)
            tally.add(lines)
    return tally.summary()


@dataclass
class _Tally:
    """Counts of what is in the file.

    Attributes:
        num_prompts: prompts in it.
        num_tokens: sampled tokens in it.
        num_resumed_tokens: those that were there before.
        finish_reasons: counts of completions by reason.
        seconds: of sampling the new ones.
    """

    num_prompts: int = 0
    num_tokens: int = 0
    num_resumed_tokens: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Count rows of the file."""
        self.num_prompts += len(lines)
        for line in lines:
            self.num_tokens += sum(line["token_counts"])
            self.finish_reasons.update(line["finish_reasons"])

    def summary(self) -> dict[str, Any]:
        """What `sample` returns."""
        new_tokens = self.num_tokens - self.num_resumed_tokens
        return {
            "prompts": self.num_prompts,
            "completions": self.finish_reasons.total(),
            "tokens": self.num_tokens,
            "finish_reasons": {reason: self.finish_reasons[reason] for reason in ("stop", "length")},
            "seconds": self.seconds or None,
            "tokens_per_second": new_tokens / self.seconds if self.seconds else None,
        }


def _prompt_ids(renderer: ChatRenderer, row: PromptRow) -> TokenIds:
    try:
        return renderer.prompt_ids(row.prompt)
    except RowError as error:
        error.where = row.where
        raise


def _load_policy(model: str, adapter_path: str | Path | None, tokenizer: Any) -> nn.Module:
    keep_weights_resident()
    policy = load_model(model).model
    check_vocabulary(policy, tokenizer)
    apply_adapter(policy, adapter_path)
    count_logits(policy)  # what mlx can't run here is a sentence, and not a traceback
    return policy


def _shifted(progress: Progress, before: int, total: int) -> Callable[[float, float], None]:
    """Progress within a group, as that within all completions."""
    return lambda done, _: progress.update(before + done, total)


def _line(
    row: PromptRow, seed: int, completions: Sequence[SampledCompletion], renderer: ChatRenderer
) -> dict[str, Any]:
    """A row of the output."""
    columns = {
        "tools": row.prompt.tools,
        "chat_template_kwargs": {**renderer.template_kwargs, **row.prompt.template_kwargs},
        **{name: row.row[name] for name in KEPT_COLUMNS if name in row.row},
    }
    texts = [completion.text for completion in completions]
    if _is_whole_turn(renderer, row.prompt):
        texts = [text.strip() for text in texts]  # space around a turn's content is the template's
    return {
        "prompt": _prompt_column(row.prompt),
        "completions": texts,
        "token_counts": [len(completion.token_ids) for completion in completions],
        "finish_reasons": [completion.finish_reason for completion in completions],
        "seed": seed,
        **{name: value for name, value in columns.items() if value},
    }


def _is_whole_turn(renderer: ChatRenderer, prompt: Prompt | Example) -> bool:
    """Whether a completion is the content of a turn, and not what follows a text or the beginning of a turn."""
    chat = renderer.as_chat(prompt)
    return prompt.is_hh_dialogue if chat is None else not chat.continues_turn


def _prompt_column(prompt: Prompt | Example) -> TextOrMessages:
    """A prompt as it is read again: a dialogue as its text, since it may have been taken as that."""
    if not prompt.is_hh_dialogue:
        return prompt.prompt
    return format_hh_dialogue([*as_messages(prompt.prompt), {"role": "assistant", "content": ""}]).rstrip()
