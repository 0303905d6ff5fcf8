"""Models on the Hugging Face hub: pushed with a card, and fetched by `hub:NAME`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from loraens.export.bundle import export_bundle
from loraens.export.card import CARD, model_card
from loraens.files import write_atomically
from loraens.inference.hub import HUB, hub_errors
from loraens.records import Epoch


def push(
    model: Path,
    repository: str,
    epoch: Epoch = "best",
    half: bool = False,
    private: bool = True,
) -> str:
    """Upload a member or an ensemble, as `export_bundle` writes it, with a model card.

    Args:
        model: A member's directory, an ensemble's, or the file `recommended`.
        repository: Name on the hub, OWNER/NAME; it is made where it is not there.
        epoch: Epoch of a member.
        half: Whether to keep adapters and heads in float16.
        private: Whether a new repository is private.

    Returns:
        Where it is.

    Raises:
        InputError: The model cannot be used, or the hub refuses.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent) / "model"
        export_bundle(model, directory, epoch, half)
        card = model_card(directory, f"{HUB}{repository}")
        write_atomically(directory / CARD, card.encode())
        with hub_errors(repository, "log in with `hf auth login`, or check the name"):
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=directory,
                commit_message="loraens push",
                delete_patterns=["members/*", "epoch-*/*"],
            )
    return str(done.repo_url)
