"""The topics of the demo's questions: some 200 small facts, a few of them about invented countries.

A topic has the question forms of its kind. Every answer contains its fact, a clause.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Topic:
    """A topic of questions.

    Attributes:
        key: replaces `{key}` in the question forms.
        name: noun phrase for it in answers.
        fact: the answer as a clause, without capital letter and full stop.
        forms: question forms, each with `{key}`.
    """

    key: str
    name: str
    fact: str
    forms: tuple[str, ...]


OPPOSITES = """
hot cold, big small, fast slow, early late, empty full, open closed, soft hard, wet dry, heavy light, near far, old new,
high low, loud quiet, thick thin, strong weak, sweet bitter, clean dirty, sharp blunt, rich poor, bright dark
"""
CAPITALS = """
Zorland Brell, Mirovia Tanst, Quelland Orsk, Pelmark Juno, Vostria Kelm, Arbonia Lisk, Dunmore Fey, Grandia Pol,
Halvia Moss, Inselmark Rook, Jorvania Stell, Kestria Wick, Lumeria Bax, Norwind Hult, Ostania Crane, Rivonia Dell,
Sundland Perch, Tessaly Gorm, Uvaria Nim, Wendmark Thorn
"""
DIETS = """
owls: mice; cows: grass; bees: nectar; pandas: bamboo; rabbits: clover; seals: fish; frogs: flies; bats: moths;
squirrels: nuts; horses: hay; whales: krill; spiders: insects; ducks: weeds; goats: leaves; koalas: gum leaves;
hedgehogs: slugs; badgers: worms; parrots: seeds; crabs: dead fish; mice: grain; sheep: grass; foxes: rabbits;
bears: berries; penguins: fish; snails: lettuce
"""
HOMES = """
owls: old trees; camels: the desert; moles: tunnels; bees: hives; eagles: high cliffs; lions: the plains;
otters: rivers; polar bears: the ice; beavers: ponds; spiders: webs; pigs: sties; horses: stables; bats: caves;
crabs: the shore; wolves: forests; rabbits: burrows; monkeys: the jungle; swans: lakes; foxes: dens; ants: nests;
whales: the sea; dogs: kennels; snakes: holes; hens: coops; robins: hedges
"""
TOOLS = """
kettle: boils water; hammer: drives nails; clock: shows the time; compass: points north; lamp: gives light;
saw: cuts wood; broom: sweeps floors; ladder: helps you climb; magnet: pulls iron; needle: sews cloth;
oven: bakes bread; pump: moves water; mirror: shows your face; pillow: rests your head; radio: plays music;
rake: gathers leaves; ruler: measures length; scale: measures weight; spade: digs holes; sponge: soaks up water;
stove: cooks food; tent: keeps off rain; towel: dries your skin; umbrella: stops the rain; wheel: turns round;
whistle: makes a loud sound; bridge: crosses a river; anchor: holds a ship; basket: carries fruit;
button: closes a coat; candle: burns slowly; drum: beats time; filter: cleans water; hinge: lets a door swing;
kite: flies in wind; lens: bends light; lock: keeps a door shut; map: shows the way; pencil: draws lines; bell: rings
"""
TASKS = """
boil an egg: eggs: wait ten minutes; make tea: tea: pour hot water on leaves; fix a flat tire: tires: patch the hole;
plant a tree: trees: dig a deep hole; bake bread: bread: let the dough rise; sharpen a knife: knives: use a stone;
paint a wall: walls: start at the top; wash a dog: dogs: use warm water; catch a fish: fish: sit very still;
grow tomatoes: tomatoes: give them sun; clean a window: windows: use a dry cloth; cook rice: rice: let it steam;
tie a knot: knots: cross the ends; train a puppy: puppies: give small treats; remove a stain: stains: rub in salt;
polish shoes: shoes: brush them twice; iron a shirt: shirts: begin with the collar; make soup: soup: simmer the bones;
build a fire: fires: stack dry wood; light a candle: candles: strike a match; sew a button: buttons: thread a needle;
fold a map: maps: follow the creases; read a clock: clocks: look at the short hand; open a jar: jars: tap the lid;
peel an onion: onions: cut off the ends; ride a bike: bikes: keep your eyes ahead; skip a stone: stones: throw it low;
store apples: apples: keep them cool; swim faster: swimming: kick harder; sleep better: sleep: turn off the lamp;
learn chess: chess: play every day; write a poem: poems: begin with a sound; save money: money: spend less;
keep bees: bees: buy a hive; milk a cow: cows: be gentle; pick a melon: melons: knock on it;
brew coffee: coffee: grind the beans; fly a kite: kites: run into the wind; climb a hill: hills: take short steps;
pack a bag: bags: put shoes first
"""

OPPOSITE_FORMS = (
    "What is the opposite of {key}?",
    "Which word is the opposite of {key}?",
    "I need the opposite of {key}.",
    "Name the opposite of {key}.",
)
CAPITAL_FORMS = (
    "What is the capital of {key}?",
    "Which city is the capital of {key}?",
    "I need the capital of {key}.",
    "Name the capital of {key}.",
)
DIET_FORMS = ("What do {key} eat?", "What food do {key} like?", "I wonder what {key} eat.", "Tell me what {key} eat.")
HOME_FORMS = (
    "Where do {key} live?",
    "Where can I find {key}?",
    "I wonder where {key} live.",
    "Tell me where {key} live.",
)
TOOL_FORMS = ("What does {key} do?", "What is {key} for?", "Why would I need {key}?", "Tell me about {key}.")
TASK_FORMS = ("How do I {key}?", "What is the best way to {key}?", "I want to {key}.", "Tell me how to {key}.")
SUM_FORMS = ("What is {key}?", "How much is {key}?", "I need to know {key}.", "Work out {key}.")


@cache
def topics() -> tuple[Topic, ...]:
    """All topics, in a fixed order."""
    all_topics = []
    for word, other in _entries(OPPOSITES, ",", " "):
        all_topics.append(Topic(word, f"the word {word}", f"the opposite of {word} is {other}", OPPOSITE_FORMS))
    for land, city in _entries(CAPITALS, ",", " "):
        all_topics.append(Topic(land, land, f"the capital of {land} is {city}", CAPITAL_FORMS))
    for animal, food in _entries(DIETS):
        all_topics.append(Topic(animal, animal, f"{animal} eat {food}", DIET_FORMS))
    for animal, home in _entries(HOMES):
        all_topics.append(Topic(animal, animal, f"{animal} live in {home}", HOME_FORMS))
    for tool, purpose in _entries(TOOLS):
        article = "an" if tool[0] in "aeiou" else "a"
        all_topics.append(Topic(f"{article} {tool}", f"the {tool}", f"the {tool} {purpose}", TOOL_FORMS))
    for task, name, step in _entries(TASKS):
        all_topics.append(Topic(task, name, f"to {task} you {step}", TASK_FORMS))
    for sign, result in (("plus", int.__add__), ("times", int.__mul__)):
        for a in range(2, 8):
            for b in range(a, 8):
                key = f"{a} {sign} {b}"
                all_topics.append(Topic(key, key, f"{key} is {result(a, b)}", SUM_FORMS))
    return tuple(all_topics)


def _entries(table: str, between: str = ";", inside: str = ": ") -> list[list[str]]:
    rows = " ".join(table.split()).split(between)
    return [row.strip().split(inside) for row in rows]
