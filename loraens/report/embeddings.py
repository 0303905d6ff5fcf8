"""Maps of what two members make of dev: their pooled embeddings, by t-SNE.

Shape letters: N examples, D width of the encoder.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loraens.ensemble.read import Candidates
from loraens.store import MANIFEST, checksum, write_atomically

FOLDER = "embeddings"  # beside the members of a run
# examples that are mapped at most
PERPLEXITY = 30
MOST = 3000


def low_and_high(found: Candidates) -> list[int]:
    """The best member of the lowest rank and that of the highest one; one alone where all have the
    same.
    """
    ranks = found.dev.ranks
    order = found.dev.order
    ends = dict.fromkeys((int(ranks.min()), int(ranks.max())))
    return [next(int(member) for member in order if ranks[member] == rank) for rank in ends]


def embeddings(
    found: Candidates, members: Sequence[int], texts: list[tuple[str, ...]], which: str
) -> list[np.ndarray]:
    """What the heads of some members read of dev, `(N, D)` each: computed in one packed pass, once,
    and kept beside the run.
    """
    from loraens.inference.predictor import Predictor

    places = [_place(found, member, which) for member in members]
    if not all(place.is_file() for place in places):
        chosen = [
            (found.directories[m], found.manifests[m], found.manifests[m]["epochs"][which])
            for m in members
        ]
        for place, features in zip(
            places, Predictor.of_members(chosen).features(texts, found.dev.task), strict=True
        ):
            buffer = io.BytesIO()
            np.save(buffer, features)
            write_atomically(place, buffer.getvalue())
    return [np.load(place, allow_pickle=False) for place in places]


def _place(found: Candidates, member: int, which: str) -> Path:
    """Named by the member's manifest, which names its weights and the data."""
    directory = found.directories[member]
    digest = checksum(directory / MANIFEST)[:12]
    return (
        directory.parent
        / FOLDER
        / f"{directory.name}-{found.dev.task.name}-dev-{which}-{digest}.npy"
    )


def tsne(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that were mapped, and their places `(rows, 2)` (t-SNE, van der Maaten and Hinton 2008;
    scikit-learn).
    """
    from sklearn.manifold import TSNE

    rows = np.arange(len(features))
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(0).permutation(len(features))[:MOST])
    perplexity = min(PERPLEXITY, max(1, (len(rows) - 1) // 3))
    places: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
        features[rows]
    )
    return rows, places
