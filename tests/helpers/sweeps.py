"""What a sweep leaves."""

import json

from loraens.store import MANIFEST, find_members


def contents(run):
    """Every file of the members; of a manifest all but the seconds that it took."""
    files = {}
    for member in find_members(run):
        for path in sorted(member.rglob("*")):
            if path.is_file():
                name = path.relative_to(run).as_posix()
                files[name] = path.read_bytes()
                if path.name == MANIFEST:
                    files[name] = {**json.loads(files[name]), "seconds": None, "sha256": None}
    return files
