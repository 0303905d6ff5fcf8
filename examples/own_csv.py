"""From a CSV of your own to a model in use: `python examples/own_csv.py [tickets.csv]`.

Without a file it makes one up: tickets of a help desk, as pandas writes them, with line breaks
inside of quoted fields.
"""

import argparse
import random
from pathlib import Path

import pandas

import loraens

THINGS = {
    "billing": ["invoice", "refund", "payment", "price"],
    "delivery": ["parcel", "courier", "address", "shipment"],
    "account": ["password", "login", "email", "profile"],
}
FORMS = ["my {} is wrong\nplease help", "where do I find the {}?", "I wrote twice about a {}, but"]


def made_up(path: Path, count: int = 300) -> Path:
    """Tickets whose words tell their queue."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        queue = draw.choice(list(THINGS))
        text = draw.choice(FORMS).format(draw.choice(THINGS[queue]))
        rows.append({"text": f"{text}\nticket {number}", "queue": queue})
    pandas.DataFrame(rows).to_csv(path, index=False)
    return path


def main() -> None:
    """Build, score and use a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--label", default="queue")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--backbone", default="minilm")
    given = parser.parse_args()

    frame = pandas.read_csv(given.file or made_up(Path("tickets.csv")))
    test = frame.sample(frac=0.2, random_state=0)  # nothing is trained, chosen or tuned on these
    built = loraens.build(
        frame.drop(test.index),
        text="text",
        label=given.label,
        out="runs/tickets",
        minutes=given.minutes,
        backbone=given.backbone,
    )

    scores = loraens.evaluate(built.path, test)
    accuracy = scores.score
    print(
        f"on {len(test)} new texts: {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]"
    )

    model = loraens.Ensemble.load(built.path)  # as your service does
    for row in model.predict(["where is my parcel?", "I forgot my password"], coverage=0.8):
        print(row["prediction"], "or one of", row["set"])


if __name__ == "__main__":
    main()
