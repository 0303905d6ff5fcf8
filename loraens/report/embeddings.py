"""Maps of two members' pooled embeddings of dev, by t-SNE.

Shape letters: N examples, D width of the encoder.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loraens.arrays import npz
from loraens.ensemble.read import PoolMembers
from loraens.files import checksum, write_atomically
from loraens.store import MANIFEST

FOLDER = "embeddings"  # beside the members of a run
# examples that are mapped at most
PERPLEXITY = 30
MOST = 3000


def low_and_high(members: PoolMembers) -> list[int]:
    """The best member of the lowest rank and that of the highest one; one alone where all have the
    same.
    """
    ranks = members.dev.ranks
    ends = dict.fromkeys((int(ranks.min()), int(ranks.max())))
    return [next(int(m) for m in members.dev.order if ranks[m] == rank) for rank in ends]


def embeddings(
    members: PoolMembers, chosen: Sequence[int], texts: list[tuple[str, ...]]
) -> list[np.ndarray]:
    """Pooled features of dev, which the heads of some members read, `(N, D)` each: computed in one
    packed pass, once, and kept beside the run.
    """
    from loraens.inference.loading import LoadedMember
    from loraens.inference.predictor import Predictor

    paths = [_path(members, index) for index in chosen]
    kept = [_read(path, len(texts)) for path in paths]
    if any(of_member is None for of_member in kept):
        loaded = []
        for index in chosen:
            manifest = members.manifests[index]
            epoch = manifest.epochs[members.epoch]
            loaded.append(LoadedMember(members.directories[index], manifest, epoch))
        features = Predictor.of_members(loaded).features(texts, members.dev.task)
        for path, of_member in zip(paths, features, strict=True):
            write_atomically(path, npz(features=of_member))
        return list(features)
    return [of_member for of_member in kept if of_member is not None]


def _read(path: Path, examples: int) -> np.ndarray | None:
    """The features `(N, D)` in a file; None where it is not there or not whole, by its CRC-32."""
    try:
        with np.load(path, allow_pickle=False) as file:
            features: np.ndarray = file["features"]
    except (OSError, zipfile.BadZipFile, zlib.error, LookupError, ValueError, TypeError, EOFError):
        return None
    fits = features.ndim == 2 and len(features) == examples and features.dtype == np.float32
    return features if fits and np.isfinite(features).all() else None


def _path(members: PoolMembers, index: int) -> Path:
    """Named by the member's manifest, which names its weights and the data."""
    directory = members.directories[index]
    digest = checksum(directory / MANIFEST)[:12]
    name = f"{directory.name}-{members.dev.task.name}-dev-{members.epoch}-{digest}.npz"
    return directory.parent / FOLDER / name


def tsne(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices `(n,)` of the examples that were mapped, and their coordinates `(n, 2)` (t-SNE, van
    der Maaten and Hinton 2008; scikit-learn).
    """
    from sklearn.manifold import TSNE

    indices = np.arange(len(features))
    if len(indices) > MOST:
        indices = np.sort(np.random.default_rng(0).permutation(len(features))[:MOST])
    perplexity = min(PERPLEXITY, max(1, (len(indices) - 1) // 3))
    mapping = TSNE(perplexity=perplexity, init="pca", random_state=0)
    coordinates: np.ndarray = mapping.fit_transform(features[indices])
    return indices, coordinates
