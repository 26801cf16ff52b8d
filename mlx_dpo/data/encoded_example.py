"""An example as token ids: the prompt, its completions, and which of their tokens are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mlx_dpo.data.examples import Example

TokenIds = tuple[int, ...]
TokenMask = tuple[bool, ...]  # of a completion: whether each token is trained and scored, or context


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token ids.

    Attributes:
        prompt: what the completions are given, as it is rendered for generation; at least one token.
        completions: the tokens of each completion, up to and including the end of the turn; of a pair the chosen one's,
            then the rejected one's.
        example: what it was encoded from.
        prompt_is_prefix: prompt and completion rendered together begin with the tokens of the prompt rendered for
            generation, for every completion.
        completion_masks: which tokens of each completion are trained; None where all are.
        prompt_tokens_cut: tokens that the prompt lost to the length limit.
        completion_tokens_cut: tokens that each completion lost to it.
        findings: keys of `mlx_dpo.data.encoding_warnings` that apply to it, those that its ids don't show.
    """

    prompt: TokenIds
    completions: tuple[TokenIds, ...]
    example: Example = field(compare=False)
    prompt_is_prefix: bool = True
    completion_masks: tuple[TokenMask, ...] | None = None
    prompt_tokens_cut: int = 0
    completion_tokens_cut: tuple[int, ...] = ()
    findings: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def chosen(self) -> TokenIds:
        """The first completion."""
        return self.completions[0]

    @property
    def rejected(self) -> TokenIds:
        """The second one, of a pair."""
        return self.completions[1]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the longest completion."""
        return len(self.prompt) + max(map(len, self.completions))

    @property
    def truncated(self) -> bool:
        """Whether tokens were lost to the length limit."""
        return self.prompt_tokens_cut > 0 or any(self.completion_tokens_cut)

    @property
    def lengths_before_cut(self) -> tuple[int, ...]:
        """Tokens of the prompt and of each completion without the length limit."""
        cut = self.completion_tokens_cut or (0,) * len(self.completions)
        completions = (len(ids) + n for ids, n in zip(self.completions, cut, strict=True))
        return len(self.prompt) + self.prompt_tokens_cut, *completions

    def mask(self, i: int) -> TokenMask:
        """Which tokens of completion `i` are trained."""
        return (True,) * len(self.completions[i]) if self.completion_masks is None else self.completion_masks[i]

    def select_completions(self, selected: slice) -> EncodedExample:
        """The example with only some of its completions."""
        masks, cut = self.completion_masks, self.completion_tokens_cut
        return replace(
            self,
            completions=self.completions[selected],
            completion_masks=None if masks is None else masks[selected],
            completion_tokens_cut=cut[selected],
        )


def cut_completion(ids: TokenIds, mask: TokenMask | None, limit: int) -> tuple[TokenIds, TokenMask | None]:
    """A completion of at most `limit` tokens: it loses its end.

    Where it begins with context, which is not trained, that keeps up to half of the limit and loses its oldest tokens,
    so that there is something to train.
    """
    if len(ids) <= limit:
        return ids, mask
    if mask is None:
        return ids[:limit], None
    context = mask.index(True) if True in mask else 0
    room = max(limit // 2, limit - (len(ids) - context))
    start = max(0, context - room)
    return ids[start : start + limit], mask[start : start + limit]


def common_prefix_length(*sequences: Sequence[int] | str) -> int:
    """The number of items with which all sequences begin alike."""
    shortest = min(map(len, sequences))
    first, *others = sequences
    if all(other[:shortest] == first[:shortest] for other in others):
        return shortest
    return next(i for i in range(shortest) if any(other[i] != first[i] for other in others))
