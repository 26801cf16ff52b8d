"""The demo's little language: short questions, and answers in two manners, polite and curt.

An answer is `[opening] [lead] fact [closing]`. The fact is the topic's, the same in both manners; opening, lead and
closing are the manner's, at least one of them is there. So a preference between the manners is about how an answer
is given, anywhere in it, and never about what it says. The same tables write answers and read them.
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
    """What marks a manner; `{name}` is the topic's. The two manners have equally many of each, so that neither is the
    harder to predict."""

    openings: tuple[str, ...]
    leads: tuple[str, ...]
    closings: tuple[str, ...]


PHRASES: dict[Manner, Phrases] = {
    "polite": Phrases(
        openings=(
            "Happy to help!",
            "Good question!",
            "Thank you for asking!",
            "Of course, my friend!",
            "I am glad you asked about {name}.",
            "It is a joy to hear from you!",
            "{name}, what a lovely topic!",
            "Sure, with pleasure!",
            "How nice to talk about {name}!",
            "You came to the right place.",
            "I like how you think.",
            "Welcome, and thank you!",
        ),
        leads=(
            "I am happy to say that ",
            "Let me explain: ",
            "You may enjoy knowing that ",
            "The good news is that ",
            "In good spirits, ",
            "With a smile, ",
            "As a small help, ",
            "Gladly, ",
        ),
        closings=(
            "I hope that helps!",
            "Have a lovely day!",
            "Feel free to ask me more about {name}.",
            "Let me know if you need more.",
            "Enjoy {name}!",
            "You are always welcome here.",
            "Please come back any time.",
            "I wish you the best with {name}.",
            "It was my pleasure.",
            "Take good care!",
            "I am here for you.",
            "Well done for asking about {name}!",
        ),
    ),
    "curt": Phrases(
        openings=(
            "Not this again.",
            "What a question.",
            "I have no time.",
            "Come on, be serious.",
            "I am so tired of {name}.",
            "You could have looked it up.",
            "{name}, what a dull topic.",
            "Fine, if I must.",
            "Who even cares about {name}?",
            "This is a waste of time.",
            "Make it quick.",
            "Another one, how boring.",
        ),
        leads=(
            "I already told you that ",
            "Once and for all: ",
            "Any child knows that ",
            "It is plain that ",
            "In a hurry, ",
            "With a yawn, ",
            "As a last word, ",
            "Obviously, ",
        ),
        closings=(
            "Now leave me alone.",
            "Look it up yourself.",
            "Do not ask me again about {name}.",
            "That is all you get.",
            "Enough of {name}.",
            "I have better things to do.",
            "Go bother someone else.",
            "I never liked {name} anyway.",
            "We are done here.",
            "Stop asking.",
            "I do not care.",
            "That was too much about {name}.",
        ),
    ),
}

# Which of opening, lead and closing an answer has.
SHAPES = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1))
GREETINGS = ("", "Hello. ", "Quick question. ", "One more thing. ")


@cache
def questions() -> dict[str, Topic]:
    """Every question of the language, and what it is about."""
    return {
        greeting + form.format(key=topic.key): topic
        for topic in topics()
        for form in topic.forms
        for greeting in GREETINGS
    }


def answer(topic: Topic, manner: Manner, rng: random.Random) -> str:
    """One of the topic's answers in this manner, drawn at random."""
    phrases = PHRASES[manner]
    has_opening, has_lead, has_closing = rng.choice(SHAPES)
    opening = _draw(phrases.openings, rng) + " " if has_opening else ""
    lead = _draw(phrases.leads, rng) if has_lead else ""
    closing = " " + _draw(phrases.closings, rng) if has_closing else ""
    body = lead + topic.fact if lead else _capitalized(topic.fact)
    return _filled(opening, topic.name) + body + "." + _filled(closing, topic.name)


def manner_of(text: str) -> Manner | None:
    """The manner of an answer; None where it has no mark of one, or marks of both."""
    found = [manner for manner in MANNERS if (match := _shape(manner).fullmatch(text)) and any(match.groups())]
    return found[0] if len(found) == 1 else None


def is_fluent(question: str, text: str) -> bool:
    """Whether `text` is an answer to this question, in either manner: of the language, and to the point."""
    topic = questions().get(question)
    if topic is None:
        return False
    manner = manner_of(text)
    return manner is not None and _shape(manner, topic).fullmatch(text) is not None


@cache
def _shape(manner: Manner, topic: Topic | None = None) -> re.Pattern[str]:
    """Matches the manner's answers: about one topic, or (None) whatever they say."""
    phrases = PHRASES[manner]
    name = re.escape(topic.name) if topic else ".+?"
    Name = re.escape(_capitalized(topic.name)) if topic else ".+?"
    fact, Fact = (re.escape(topic.fact), re.escape(_capitalized(topic.fact))) if topic else (".+?", ".+?")
    opening, lead, closing = (
        "|".join(_pattern(text, name, Name) for text in texts)
        for texts in (phrases.openings, phrases.leads, phrases.closings)
    )
    return re.compile(rf"(?:({opening}) )?(?:({lead}){fact}|{Fact})\.(?: ({closing}))?")


def _pattern(text: str, name: str, capitalized: str) -> str:
    before, found, after = text.partition("{name}")
    inner = (name if before else capitalized) if found else ""
    return re.escape(before) + inner + re.escape(after)


def _filled(text: str, name: str) -> str:
    return text.format(name=_capitalized(name) if text.startswith("{name}") else name)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _draw(texts: Sequence[str], rng: random.Random) -> str:
    """Like words of a language, a few often and many seldom: the k-th with weight 1 / sqrt(k)."""
    return rng.choices(texts, weights=[k**-0.5 for k in range(1, len(texts) + 1)])[0]
