"""A rule for summaries, for trying the recipe without a language model as judge.

    mlx-dpo evaluate ... --generate 64 --judge examples/summarization/judge.py:covers

The score is the share of the post's frequent words that a summary has, less the share of its own words that the post
does not have, less a point for each 48 words beyond 48. Copying the post's beginning does well by it: use a language
model with rubric.txt for a result that you report.
"""

import re
from collections import Counter

STOP_WORDS = """
a about after all also am an and any are as at be been but by can did do does for from get had has have he her him his
how i if in into is it its just me my no not of on or our out she so than that the their them then there they this to
too up us was we were what when which who will with would you your tl dr title post subreddit
"""
FREQUENT = 12  # words of a post that a summary should have


def content_words(text: str) -> list[str]:
    """Its words in lower case, without stop words."""
    return [word for word in re.findall(r"[a-z']+", text.lower()) if word not in STOP_WORDS.split()]


def covers(prompt: str, answer: str) -> float:
    """Coverage of the prompt's frequent words, less words of its own and excess length."""
    counts, own = Counter(content_words(prompt)), content_words(answer)
    if not own:
        return -1.0
    frequent = {word for word, _ in counts.most_common(FREQUENT)}
    coverage = len(frequent & set(own)) / max(len(frequent), 1)
    foreign = sum(word not in counts for word in own) / len(own)
    return coverage - foreign - max(len(answer.split()) - 48, 0) / 48
