"""Models that are fetched from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraens.errors import InputError

HUB = "hub:"  # what begins the name of a model there
FILES = ("*.json", "*.safetensors", "*.npz", "*.txt", "*.model")


@contextmanager
def hub_errors(repository: str, fix: str) -> Iterator[None]:
    """Say in one sentence what the hub refuses.

    Raises:
        InputError: It refuses, or cannot be reached.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason")
        raise InputError(f"{HUB}{repository}: {reason.strip().rstrip('.:')}: {fix}") from None


def fetched(model: str | Path) -> Path:
    """The directory of a model: as it is, or of `hub:NAME` that of its files in the hub's cache,
    which are fetched where they are not there.

    Raises:
        InputError: The hub has no such model, or cannot be reached.
    """
    name = str(model)
    if not name.startswith(HUB):
        return Path(model)
    from huggingface_hub import snapshot_download

    repository, _, revision = name.removeprefix(HUB).partition("@")
    with hub_errors(repository, "check the name (hub:OWNER/NAME) and the connection"):
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=[*FILES])
        )
