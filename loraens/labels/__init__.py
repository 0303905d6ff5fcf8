"""Label kinds: all that depends on what is predicted, one object a kind, one file a kind.

`classes`, `number`, `labels` and `levels` are built in. A further kind is a subclass of `LabelKind`
(or of a built-in kind) that is registered: `LABEL_KINDS.register("counts", Counts())`.
"""

from loraens.labels.base import LabelKind
from loraens.labels.classes import Classes
from loraens.labels.labels import Labels
from loraens.labels.levels import Levels
from loraens.labels.number import Number
from loraens.registry import Registry

__all__ = ["LABEL_KINDS", "LabelKind"]

LABEL_KINDS: Registry[LabelKind] = Registry("label_kinds")
LABEL_KINDS.register("classes", Classes())
LABEL_KINDS.register("number", Number())
LABEL_KINDS.register("labels", Labels())
LABEL_KINDS.register("levels", Levels())
