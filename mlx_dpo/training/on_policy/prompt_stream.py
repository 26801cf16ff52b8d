"""The prompts of an on-policy run, in an endless order that the seed determines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.chat_rendering import PromptSource
from mlx_dpo.data.encoded_example import TokenIds
from mlx_dpo.data.shuffled_epochs import ShuffledEpochs

MAX_CACHED_PROMPTS = 4096


class PromptStream:
    """Prompts by their position in the stream, reshuffled in every pass over the file.

    Attributes:
        prompts: the prompts of the file.
    """

    def __init__(self, prompts: Sequence[PromptSource], encoder: ExampleEncoder, seed: int, max_tokens: int) -> None:
        """Make a stream.

        Args:
            prompts: the prompts.
            encoder: gives their token ids; its `max_length` is that of prompt and completion.
            seed: determines the order.
            max_tokens: longest completion, for which a prompt must leave room.
        """
        self.prompts, self.encoder = prompts, encoder
        self._order = ShuffledEpochs(len(prompts), 1, seed)
        self._room = encoder.max_length - max_tokens
        self._token_ids = lru_cache(MAX_CACHED_PROMPTS)(self._encode)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """A digest of all prompts."""
        digest = hashlib.blake2b(digest_size=16)
        for prompt in self.prompts:
            fields = [prompt.prompt, prompt.tools, prompt.template_kwargs]
            digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def index(self, position: int) -> int:
        """Return the index of the prompt at a position of the stream."""
        return int(self._order.batch(position)[0])

    def token_ids(self, index: int) -> TokenIds:
        """Return the token ids of a prompt, shortened to leave room for a completion.

        Args:
            index: of the prompt in the file.

        Raises:
            RowError: it can't be rendered.
        """
        return self._token_ids(index)

    def _encode(self, index: int) -> TokenIds:
        return self.encoder.prompt_ids(self.prompts[index], self._room)
