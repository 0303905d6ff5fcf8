"""A made-up corpus for the three tasks, written by a seeded grammar: for a first run and for tests,
not for results.

Every text is invented. There is signal that a model can learn (the opinion on a thing, what a
question asks, how many parts of a scene agree) and noise that it cannot (labels that annotators
would dispute, misspellings).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from random import Random

from loraens.files import write_atomically

SIZES = {"train": 1280, "dev": 400, "test": 80}

THINGS = (
    "the lighthouse musical", "this heist comedy", "the robot documentary", "her third thriller",
    "the tunnel drama", "that western remake", "the chess biopic", "this submarine tale",
    "the harvest romance", "his silent short", "the glacier epic", "this courtroom satire",
)  # fmt: skip
ASPECTS = (
    "plot", "ending", "dialogue", "pacing", "lead performance", "camera work", "score", "editing",
    "humour", "second act", "supporting cast", "premise",
)  # fmt: skip
ADJECTIVES: dict[int, tuple[str, ...]] = {
    -2: (
        "dreadful",
        "unbearable",
        "atrocious",
        "a complete disaster",
        "insulting",
        "painful to sit through",
    ),
    -1: ("dull", "clumsy", "predictable", "thin", "uneven", "rather flat", "forgettable"),
    0: (
        "ordinary",
        "neither here nor there",
        "what you would expect",
        "conventional",
        "serviceable",
    ),
    1: ("pleasant", "engaging", "solid", "charming", "clever enough", "nicely judged"),
    2: ("magnificent", "dazzling", "unforgettable", "a triumph", "breathtaking", "flawless"),
}
OPENINGS = (
    "",
    "",
    "",
    "honestly , ",
    "in the end , ",
    "as far as i can tell , ",
    "to my surprise , ",
    "make no mistake : ",
)
ASIDES = (
    "it runs for ninety minutes", "it was shot in the north", "the crew is mostly new",
    "it opens on friday", "it is set in a small port", "the book came first",
)  # fmt: skip

TOPICS = (
    "learn the violin", "bake rye bread", "repair a bicycle wheel", "keep bees",
    "study for a maths exam", "grow tomatoes indoors", "save money for a trip",
    "train for a marathon", "write a short novel", "paint with watercolours", "build a treehouse",
    "teach a parrot to talk", "brew ginger beer", "restore an old radio", "sleep better at night",
    "start a book club", "sail a small boat", "make goat cheese", "photograph the night sky",
    "learn sign language",
)  # fmt: skip
INTENTS: dict[str, tuple[str, ...]] = {
    "way": (
        "What is the best way to {}?",
        "How can I {}?",
        "How do I {} properly?",
        "What should I do to {}?",
    ),
    "time": (
        "How long does it take to {}?",
        "How many weeks do I need to {}?",
        "How much time do people need to {}?",
    ),
    "cost": (
        "How much does it cost to {}?",
        "Is it expensive to {}?",
        "What would I have to pay to {}?",
    ),
    "reason": (
        "Why do people {}?",
        "What makes someone want to {}?",
        "For what reason would anyone {}?",
    ),
    "alone": (
        "Can I {} without help?",
        "Is it possible to {} on my own?",
        "Can a beginner {} alone?",
    ),
    "book": (
        "Which book teaches you to {}?",
        "What should I read before I {}?",
        "Is there a good guide to {}?",
    ),
}

AGENTS = (
    ("a man", "a guy"), ("a woman", "a lady"), ("two children", "two kids"), ("a dog", "a puppy"),
    ("an old farmer", "an elderly farmer"), ("a girl", "a young girl"),
    ("a group of students", "some students"), ("a cook", "a chef"),
)  # fmt: skip
ACTIONS = (
    ("carried", "hauled"), ("looked at", "watched"), ("cleaned", "washed"),
    ("ran past", "dashed past"), ("sat beside", "sat next to"), ("painted", "put paint on"),
    ("pushed", "shoved"), ("hid", "concealed"),
)  # fmt: skip
OBJECTS = (
    ("a wooden boat", "a boat made of wood"), ("a red bicycle", "a red bike"),
    ("a large basket", "a big basket"), ("a stone wall", "a wall of stone"),
    ("an empty bottle", "a bottle with nothing in it"), ("a small table", "a little table"),
    ("a broken guitar", "a damaged guitar"), ("a yellow car", "an automobile painted yellow"),
)  # fmt: skip
PLACES = (
    ("in the park", "in a park"), ("near the river", "close to the river"),
    ("at the market", "in a market"), ("on the beach", "at the seaside"),
    ("in the kitchen", "inside a kitchen"), ("on a hill", "on top of a hill"),
    ("behind the school", "at the back of the school"), ("under a bridge", "below a bridge"),
)  # fmt: skip
SLOTS = ((AGENTS, 1.2), (ACTIONS, 1.4), (OBJECTS, 1.4), (PLACES, 1.0))

Record = tuple[tuple[str, ...], str]  # texts and label


def _misspelt(text: str, rng: Random, chance: float = 0.12) -> str:
    """The text, sometimes with two neighbouring letters swapped."""
    if rng.random() >= chance or len(text) < 8:
        return text
    index = rng.randrange(1, len(text) - 2)
    return text[:index] + text[index + 1] + text[index] + text[index + 2 :]


def _opinion(rng: Random) -> tuple[str, float]:
    strength = rng.choice((-2, -1, -1, 0, 1, 1, 2))
    word = rng.choice(ADJECTIVES[strength])
    aspect = rng.choice(ASPECTS)
    style = rng.random()
    if style < 0.15 and abs(strength) == 1:
        return f"the {aspect} is not {word}", -0.7 * strength
    if style < 0.3:
        return f"the {aspect} is really {word}", 1.2 * strength
    return f"the {aspect} is {word}", float(strength)


def review(rng: Random) -> Record:
    """A sentence about a film and its sentiment from 0 to 4; one label in eight is off by one."""
    opening = rng.choice(OPENINGS)
    thing = rng.choice(THINGS)
    first, value = _opinion(rng)
    style = rng.random()
    if style < 0.35:
        second, weight = _opinion(rng)
        text = f"{opening}in {thing} {first} , but {second} ."
        value = 0.35 * value + 0.85 * weight
    elif style < 0.6:
        second, weight = _opinion(rng)
        text = f"{opening}{first} and {second} in {thing} ."
        value = 0.65 * value + 0.65 * weight
    elif style < 0.8:
        text = f"{opening}{thing} : {rng.choice(ASIDES)} , and {first} ."
    else:
        text = f"{opening}{first} in {thing} ."
    label = round(max(-2.0, min(2.0, value))) + 2
    if rng.random() < 0.125:
        label += rng.choice((-1, 1))
    return (_misspelt(text, rng),), str(max(0, min(4, label)))


def question_pair(rng: Random) -> Record:
    """Two questions and whether they ask the same; one label in twenty is wrong."""
    intent = rng.choice(list(INTENTS))
    topic = rng.choice(TOPICS)
    same = rng.random() < 0.4
    other_intent = intent
    other_topic = topic
    if not same:
        change = rng.random()
        if change < 0.75:
            other_intent = rng.choice([name for name in INTENTS if name != intent])
        if change >= 0.5:
            other_topic = rng.choice([name for name in TOPICS if name != topic])
    first = rng.choice(INTENTS[intent])
    second = rng.choice([form for form in INTENTS[other_intent] if form != first])
    if rng.random() < 0.05:
        same = not same
    texts = (_misspelt(first.format(topic), rng), _misspelt(second.format(other_topic), rng))
    return texts, "1.0" if same else "0.0"


def scene_pair(rng: Random) -> Record:
    """Two scenes and how similar they are, 0 to 5: the weight of the parts that agree, and an
    annotator's noise.
    """
    first = []
    second = []
    agreement = 0.0
    kept = rng.random()
    for choices, weight in SLOTS:
        scene = rng.choice(choices)
        other = scene if rng.random() < kept else rng.choice(choices)
        agreement += weight * (other == scene)
        first.append(scene[0])
        second.append(rng.choice(other))
    score = max(0.0, min(5.0, agreement + rng.gauss(0, 0.4)))
    texts = tuple(_misspelt(" ".join(parts).capitalize() + ".", rng) for parts in (first, second))
    return texts, f"{round(score * 5) / 5:.1f}"


CORPUS: tuple[tuple[str, tuple[str, ...], str, Callable[[Random], Record]], ...] = (
    ("ids-sst", ("sentence",), "sentiment", review),
    ("quora", ("sentence1", "sentence2"), "is_duplicate", question_pair),
    ("sts", ("sentence1", "sentence2"), "similarity", scene_pair),
)


def write_corpus(directory: Path, sizes: dict[str, int] = SIZES, seed: int = 0) -> None:
    """Write the made-up corpus under the names and in the format of the course's files; the test
    files have no labels.

    No texts occur twice within a task.
    """
    for stem, columns, label_column, make in CORPUS:
        rng = Random(f"{seed} {stem}")
        seen = set()
        for split, size in sizes.items():
            labelled = split != "test"
            buffer = io.StringIO()
            writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
            writer.writerow(["", "id", *columns, *([label_column] if labelled else [])])
            count = 0
            while count < size:
                texts, label = make(rng)
                if texts in seen:
                    continue
                seen.add(texts)
                writer.writerow(
                    [count, f"{rng.getrandbits(96):024x}", *texts, *([label] if labelled else [])]
                )
                count += 1
            name = f"{stem}-{split}{'' if labelled else '-student'}.csv"
            write_atomically(directory / name, buffer.getvalue().encode())
