"""What is chosen by name, and can be added from outside: one registry for each seam."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Objects by name, in the order in which they were added.

    A package adds its own with `register`, or declares them as entry points of the group
    `loraens.<group>`, which are loaded when a name is not known or all names are listed.

    Args:
        group: What the objects are, in the plural, such as "label_kinds".

    Examples:
        >>> shapes = Registry("shapes")
        >>> shapes.register("square", 4)
        4
        >>> shapes["square"], "circle" in shapes, list(shapes)
        (4, False, ['square'])
        >>> shapes["circle"]
        Traceback (most recent call last):
        KeyError: "'circle' is none of the shapes: square"
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self._objects: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str, value: T) -> T:
        """Add an object.

        Raises:
            ValueError: The name is taken by another one.
        """
        if self._objects.get(name, value) is not value:
            raise ValueError(f"{self.group}: the name {name!r} is taken")
        self._objects[name] = value
        return value

    def unregister(self, name: str) -> None:
        """Remove an object, such as one of a test.

        Raises:
            KeyError: There is none of that name.
        """
        del self._objects[name]

    def _load_entry_points(self) -> None:
        if not self._loaded:
            self._loaded = True
            for entry in entry_points(group=f"loraens.{self.group}"):
                self.register(entry.name, entry.load())

    def __getitem__(self, name: str) -> T:
        """The object of a name.

        Raises:
            KeyError: There is none; the message lists the names.
        """
        if name not in self._objects:
            self._load_entry_points()
        if name not in self._objects:
            raise KeyError(f"{name!r} is none of the {self.group}: {', '.join(self)}")
        return self._objects[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._objects:  # entry points are looked up only where they may be needed
            self._load_entry_points()
        return name in self._objects

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(self._objects)

    def __len__(self) -> int:
        self._load_entry_points()
        return len(self._objects)
