"""The backbone's tokenizer, kept as `transformers` makes it, since that takes seconds to import."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer, processors

from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.model.backbone import local_directory, unusable
from loraens.model.packaged import cache_directory, locate

SUFFIXES = (".json", ".txt", ".model")  # of the files that a tokenizer is made of


def load_tokenizer(name: str) -> Tokenizer:
    """The backbone's fast tokenizer, its side of truncation set.

    It is read from the cache where the same files were loaded before by the same versions; a cached
    file that cannot be read is made again.

    Args:
        name: Hub name, directory, or that of a packaged backbone.

    Raises:
        InputError: It cannot be loaded, or has tokens that the encoder has no embeddings of.
    """
    tokenizer = _loaded(name)
    directory = local_directory(name)
    embeddings = None if directory is None else _embeddings(directory)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if embeddings is not None and size > embeddings:
        raise InputError(
            f"backbone {name!r} has a tokenizer of {size} tokens and an encoder of {embeddings}"
            " token embeddings: save the encoder again after"
            " resize_token_embeddings(len(tokenizer)), or the tokenizer without the added tokens"
        )
    return tokenizer


def _embeddings(directory: Path) -> int | None:
    """Number of token embeddings of the encoder in a directory; None where it does not say."""
    try:
        size = json.loads((directory / "config.json").read_bytes()).get("vocab_size")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # loading the encoder says what is wrong
    return size if isinstance(size, int) else None


def _loaded(name: str) -> Tokenizer:
    """The tokenizer, from the cache where it is there.

    Raises:
        InputError: It cannot be loaded.
    """
    directory = local_directory(name)
    path = None if directory is None else _cached_path(directory)
    if path is not None and path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception:  # the library raises no narrower one
            path.unlink()
    tokenizer, complete = _from_transformers(name)
    if path is not None and complete:
        with suppress(OSError):  # a cache that cannot be written costs time, and nothing else
            write_atomically(path, tokenizer.to_str().encode())
    return tokenizer


def _cached_path(directory: Path) -> Path:
    """Where the tokenizer of a directory's files is kept."""
    digest = hashlib.sha256(f"v1 {version('transformers')} {version('tokenizers')}".encode())
    for path in sorted(directory.iterdir()):
        if path.suffix in SUFFIXES and path.is_file():
            digest.update(f"\x1e{path.name}\x1f".encode())
            digest.update(path.read_bytes())
    return cache_directory() / "tokenizers" / f"{digest.hexdigest()[:40]}.json"


def _from_transformers(name: str) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether its JSON says all of it.

    Raises:
        InputError: It cannot be loaded.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer

    location = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise unusable(name, error) from None
    if not tokenizer.is_fast or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(
            f"backbone {name!r} has no fast tokenizer (tokenizer.json): put it beside the weights"
        )
    backend: Tokenizer = tokenizer.backend_tokenizer
    if backend.num_special_tokens_to_add(is_pair=True) == 0:
        _end_texts(backend, tokenizer.eos_token or tokenizer.sep_token or tokenizer.pad_token)
    backend.no_padding()
    backend.enable_truncation(max_length=512, direction=tokenizer.truncation_side)
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend, not tokenizer.split_special_tokens


def _end_texts(backend: Tokenizer, end: str | None) -> None:
    """Let a tokenizer that adds no token put the end of text behind each of one or two texts: else
    nothing would be between two, and nothing would be read of an empty one.

    Raises:
        InputError: It has no such token.
    """
    if end is None:
        raise InputError(
            "the backbone's tokenizer adds no token to texts, and has none that ends them: give it"
            " an eos_token"
        )
    template = processors.TemplateProcessing(
        single=f"$A {end}",
        pair=f"$A {end} $B:1 {end}:1",
        special_tokens=[(end, backend.token_to_id(end))],
    )
    before = [backend.post_processor] if backend.post_processor is not None else []
    backend.post_processor = processors.Sequence([*before, template])
