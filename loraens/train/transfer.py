"""A pack's files as values, for workers that do not see the sweep's directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraens.files import write_atomically
from loraens.records import Manifest
from loraens.store import MANIFEST, MemberStore
from loraens.train.packs import Pack


@dataclass(frozen=True)
class PackState:
    """The files of a pack and of its members.

    Args:
        manifests: Of the members that have begun, by name.
        files: Content of every file that these name, by member and by name below its directory.
        checkpoint: Content of the pack's checkpoint; None where there is none.
    """

    manifests: Mapping[str, Manifest]
    files: Mapping[str, Mapping[str, bytes]]
    checkpoint: bytes | None

    @classmethod
    def read(cls, directory: Path, pack: Pack) -> PackState:
        """The state of a pack in a sweep's directory.

        Raises:
            InputError: A member's files are not whole.
        """
        stores = [MemberStore(directory / member.name) for member in pack.members]
        begun = [store for store in stores if (store.directory / MANIFEST).is_file()]
        manifests = {store.directory.name: store.manifest() for store in begun}
        return cls(
            manifests=manifests,
            files={
                name: {file: (directory / name / file).read_bytes() for file in manifest.files}
                for name, manifest in manifests.items()
            },
            checkpoint=pack.checkpoint.read_bytes() if pack.checkpoint.is_file() else None,
        )

    def write(self, directory: Path, checkpoint: Path) -> None:
        """Write the files of a state that is not behind what is there.

        Members are written before the checkpoint, which never is ahead of them, and what they no
        longer need is removed after it.

        Args:
            directory: The sweep's directory.
            checkpoint: The pack's file.
        """
        for name, manifest in self.manifests.items():
            epochs: dict[str, dict[str, bytes]] = {}
            for file, content in self.files[name].items():
                epoch, _, short = file.rpartition("/")
                epochs.setdefault(epoch, {})[short] = content
            MemberStore(directory / name).write(epochs, manifest)
        if self.checkpoint is None:
            checkpoint.unlink(missing_ok=True)
        else:
            write_atomically(checkpoint, self.checkpoint)
        for name, manifest in self.manifests.items():
            MemberStore(directory / name).write({}, manifest)
