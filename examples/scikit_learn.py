"""For users of scikit-learn: an ensemble of LoRA members as the last step of a pipeline.

`python examples/scikit_learn.py` compares it with TF-IDF and logistic regression in the same folds,
and asks it for prediction sets.
"""

import argparse
import random

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from loraens import LoraEnsembleClassifier

PLACES = ["Rome", "Oslo", "Lima", "Cairo", "Quito", "Hanoi"]
FORMS = {
    "location": ["Where is {}?", "In which country do I find {}?", "How far away is {}?"],
    "number": ["How many people live in {}?", "How old is {}?", "What does a day in {} cost?"],
}


def questions(count: int = 160) -> tuple[list[str], list[str]]:
    """Made-up questions and their kinds."""
    draw = random.Random(0)
    labels = [draw.choice(list(FORMS)) for _ in range(count)]
    texts = [draw.choice(FORMS[label]).format(draw.choice(PLACES)) for label in labels]
    return [f"  {text} ({number})" for number, text in enumerate(texts)], labels


def main() -> None:
    """Compare, then predict sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()

    texts, labels = questions()
    strip = FunctionTransformer(np.char.strip)
    ensemble = LoraEnsembleClassifier(
        backbone=given.backbone, ranks=[2, 8], scales=[1, 3], epochs=given.epochs, lr=1e-3
    )
    models = {
        "TF-IDF": make_pipeline(strip, TfidfVectorizer(), LogisticRegression()),
        "LoRA ensemble": make_pipeline(strip, ensemble),
    }
    for name, model in models.items():
        scores = cross_val_score(model, np.array(texts), labels, cv=2)
        print(f"{name}: accuracy {scores.mean():.3f} in {len(scores)} folds")

    train, test, train_labels, test_labels = train_test_split(texts, labels, random_state=0)
    ensemble.fit(train, train_labels)
    print(ensemble.proofs_)  # held out, on examples that it cut from train
    print(classification_report(test_labels, ensemble.predict(test), zero_division=0))
    sets = ensemble.predict_set(test, coverage=0.8)  # a column a class
    right = [sets[row, list(ensemble.classes_).index(kind)] for row, kind in enumerate(test_labels)]
    print(f"the set holds the kind of {np.mean(right):.0%} of the questions")


if __name__ == "__main__":
    main()
