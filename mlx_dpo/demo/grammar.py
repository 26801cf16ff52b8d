"""The demo's language: short questions, and answers in two manners, polite and curt.

An answer is `[opening] [lead] fact [closing]`. The fact belongs to the topic and is equal in both manners. Opening,
lead and closing belong to the manner; one or two of them are present. A preference between the manners is therefore
about style, anywhere in the answer, and never about content. The same tables generate answers and recognize them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mlx_dpo.demo.topics import Topic, topics

Manner = Literal["polite", "curt"]
MANNERS: tuple[Manner, Manner] = ("polite", "curt")


@dataclass(frozen=True)
class Phrases:
    """Phrases of a manner, in which `{name}` stands for the topic's name.

    Both manners have the same number of each kind, so that they are equally hard to predict.
    """

    openings: tuple[str, ...]
    lead_ins: tuple[str, ...]
    closings: tuple[str, ...]


PHRASES: dict[Manner, Phrases] = {
    "polite": Phrases(
        openings=(
            "Happy to help!",
            "Good question!",
            "Thank you for asking!",
            "Glad you asked about {name}!",
            "Of course, my friend!",
            "Welcome, and thank you!",
            "How nice to talk about {name}!",
            "Sure, with pleasure!",
            "Lovely to hear from you!",
            "Great, let us talk about {name}!",
            "Yes, with joy!",
            "Wonderful, I can help.",
        ),
        lead_ins=(
            "Let me explain: ",
            "I am happy to say that ",
            "Gladly, ",
            "You may enjoy knowing that ",
            "With a smile, ",
            "The good news is that ",
            "My pleasure: ",
            "Kindly note that ",
        ),
        closings=(
            "I hope that helps!",
            "Have a lovely day!",
            "Feel free to ask me more about {name}.",
            "Let me know if you need more.",
            "Enjoy {name}!",
            "You are always welcome here.",
            "Please come back any time.",
            "Best wishes with {name}!",
            "Take good care!",
            "My pleasure.",
            "Thanks for asking about {name}.",
            "Happy to tell you more.",
        ),
    ),
    "curt": Phrases(
        openings=(
            "Not this again.",
            "What a dull question.",
            "Come on, be serious.",
            "Who even cares about {name}?",
            "Fine, if I must.",
            "Make it quick.",
            "Must we talk about {name}?",
            "Another one, how boring.",
            "Look, no time for this.",
            "Ugh, enough talk about {name}.",
            "Whatever, here it is.",
            "No patience left today.",
        ),
        lead_ins=(
            "Once and for all: ",
            "Any child knows that ",
            "Obviously, ",
            "Everyone but you knows that ",
            "For the last time, ",
            "It is plain that ",
            "Again: ",
            "Clearly, ",
        ),
        closings=(
            "Now leave me alone.",
            "Look it up yourself.",
            "Do not ask me again about {name}.",
            "That is all you get.",
            "Enough of {name}.",
            "Go bother someone else.",
            "We are done here.",
            "Never mention {name} again.",
            "Stop asking.",
            "Next time try a book.",
            "So much for {name}.",
            "Nobody cares anyway.",
        ),
    ),
}

# Which of opening, lead and closing an answer has. The manner is visible from its start.
SHAPES = ((1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1))
GREETINGS = ("", "Hello. ", "Quick question. ", "One more thing. ")


@cache
def questions() -> dict[str, Topic]:
    """Every question of the language, with its topic."""
    return {
        greeting + form.format(key=topic.key): topic
        for topic in topics()
        for form in topic.forms
        for greeting in GREETINGS
    }


def write_answer(topic: Topic, manner: Manner, rng: random.Random) -> str:
    """A random answer about the topic in this manner."""
    phrases = PHRASES[manner]
    has_opening, has_lead, has_closing = rng.choice(SHAPES)
    opening = _draw(phrases.openings, rng) + " " if has_opening else ""
    closing = " " + _draw(phrases.closings, rng) if has_closing else ""
    body = _draw(phrases.lead_ins, rng) + topic.fact if has_lead else _capitalized(topic.fact)
    return (opening + "{body}." + closing).format(name=topic.name, body=body)


def detect_manner(text: str) -> Manner | None:
    """The manner of an answer; None if it has phrases of neither manner, or of both."""
    matches = {manner: _shape(manner).fullmatch(text.strip()) for manner in MANNERS}
    manners = [manner for manner, match in matches.items() if match and any(match.groups())]
    return manners[0] if len(manners) == 1 else None


def is_fluent(question: str, text: str) -> bool:
    """Whether `text` is an answer of the language to this question, in either manner."""
    topic = questions().get(question)
    if topic is None:
        return False
    manner = detect_manner(text)
    return manner is not None and _shape(manner, topic).fullmatch(text.strip()) is not None


@cache
def _shape(manner: Manner, topic: Topic | None = None) -> re.Pattern[str]:
    """Matches the manner's answers about one topic, or about any if topic is None."""
    name = re.escape(topic.name) if topic else ".+?"
    fact, first = (re.escape(topic.fact), re.escape(_capitalized(topic.fact))) if topic else (".+?", ".+?")
    phrases = PHRASES[manner]
    opening, lead, closing = (
        "|".join(re.escape(text).replace(r"\{name\}", name) for text in texts)
        for texts in (phrases.openings, phrases.lead_ins, phrases.closings)
    )
    return re.compile(rf"(?:({opening}) )?(?:({lead}){fact}|{first})\.(?: ({closing}))?")


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _draw(texts: Sequence[str], rng: random.Random) -> str:
    """Like words of a language, a few often and many seldom: the k-th with weight 1 / sqrt(k)."""
    return rng.choices(texts, weights=[k**-0.5 for k in range(1, len(texts) + 1)])[0]
