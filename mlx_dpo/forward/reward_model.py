"""A trained reward model: scores completions one by one, and chooses the best of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dpo.adapters.adapter_folder import adapter_base_model
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.micro_batches import split_into_micro_batches
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import Where
from mlx_dpo.forward.device import keep_weights_resident
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.forward.reward_network import RewardNetwork, load_reward_network
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.utils.stop_flag import check_stop

ENCODING_FIELDS = ("max_length", "overlong", "raw", "chat_template_kwargs")  # on which a row's tokens depend


class RewardModel:
    """A base model with the adapter and the scalar head that `train --loss reward` wrote.

    Attributes:
        network: computes rewards of token ids.
        encoder: makes token ids of rows, as in training.
    """

    def __init__(self, network: RewardNetwork, encoder: ExampleEncoder) -> None:
        """Make it of a network in memory; `load` reads one from disk.

        Args:
            network: see the attribute.
            encoder: see the attribute.
        """
        self.network, self.encoder, self._memory_model = network, encoder, MemoryModel(network)

    @classmethod
    def load(cls, adapter_path: str | Path, *, model: str | None = None) -> RewardModel:
        """Load a reward model from the folder of its run.

        Args:
            adapter_path: the run's folder, or another that holds its adapter, its head and its config.yaml.
            model: folder or Hub id of the base model; default: the one that the adapter names.

        Raises:
            UserError: it is not a reward model, or its base model can't be loaded.
        """
        folder = Path(adapter_path)
        name = model or adapter_base_model(folder)
        tokenizer = load_tokenizer(name)
        keep_weights_resident()
        loaded = load_model(name).model
        check_vocabulary(loaded, tokenizer)
        network = load_reward_network(loaded, str(folder), use_cache=True)
        return cls(network, ExampleEncoder.from_config(encoding_config(folder), tokenizer))

    def rewards(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        on_progress: Callable[[int], None] = lambda num_done: None,
    ) -> np.ndarray:
        """Compute the reward of each row's completion.

        Completions of the same prompt share its computation. A reward says nothing by itself: rewards are compared
        with those of other completions of the same prompt.

        Args:
            rows: each with `prompt` and `completion`, as texts or messages, as in training.
            on_progress: is called with the number of rows done.

        Returns:
            [rows] float64; NaN where the run's settings drop a row for its length.

        Raises:
            RowError: a row can't be read.
        """
        encoded = [self._encode(row, i) for i, row in enumerate(rows)]
        usable = [i for i, example in enumerate(encoded) if example is not None]
        rewards, num_done = np.full(len(rows), np.nan), len(rows) - len(usable)
        micro_batches = split_into_micro_batches(
            [example for example in encoded if example is not None], self._memory_model.fits
        )
        with without_dropout(self.network.model):
            for micro in micro_batches:
                check_stop()
                rewards[[usable[i] for i in micro.batch_indices]] = self.network.logps(micro).sums
                num_done += len(micro.batch_indices)
                on_progress(num_done)
        return rewards

    def _encode(self, row: Mapping[str, Any], index: int) -> EncodedExample | None:
        where = Where("rows", index + 1)
        (example,) = parse_examples(dict(row), where)
        return self.encoder(example, where)


def best_of_n(
    reward_model: RewardModel, prompts: Sequence[TextOrMessages], completions: Sequence[Sequence[TextOrMessages]]
) -> list[int | None]:
    """Choose the completion of each prompt with the highest reward (best-of-n sampling).

    Args:
        reward_model: scores them.
        prompts: the prompts.
        completions: for each prompt, its completions.

    Returns:
        For each prompt, the index of the best of its completions, of equal ones the first; None if none has a reward,
        as empty ones have not.

    Raises:
        RowError: a prompt or a completion can't be read.
    """
    rows, positions = list[Mapping[str, Any]](), list[tuple[int, int]]()
    for i, (prompt, candidates) in enumerate(zip(prompts, completions, strict=True)):
        for j, completion in enumerate(candidates):
            if completion and not (isinstance(completion, str) and completion.isspace()):
                rows.append({"prompt": prompt, "completion": completion})
                positions.append((i, j))
    best: list[int | None] = [None] * len(prompts)
    highest = np.full(len(prompts), -np.inf)
    for (i, j), reward in zip(positions, reward_model.rewards(rows), strict=True):
        if reward > highest[i]:  # never of one without a reward
            best[i], highest[i] = j, reward
    return best


def encoding_config(adapter_path: str | Path) -> TrainConfig:
    """The settings on which tokens depend, as a run's config.yaml has them; the defaults where there is none.

    Overlong rows are dropped where the run refused them.

    Raises:
        UserError: the file can't be read, or holds a wrong value.
    """
    file = Path(adapter_path) / CONFIG_FILE
    values = read_yaml(file) if file.exists() else {}
    config = TrainConfig.from_mapping(
        {name: values[name] for name in ENCODING_FIELDS if name in values}, Where(str(file))
    )
    return config.replace(overlong="drop") if config.overlong == "error" else config
