"""Arguments of a constructor, kept so that `config.yaml` can contain them."""

from __future__ import annotations

import inspect
from typing import Any


class RecordedArguments:
    """Keeps the arguments of an instance's constructor as `init_args`.

    A class of its own, below `TextData`: jsonargparse reads the parameters of the class that
    defines `__new__` from there, and not from its constructor.
    """

    init_args: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments; the constructor refuses what does not fit it."""
        instance = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        try:
            arguments = dict(signature.bind_partial(instance, *args, **kwargs).arguments)
        except TypeError:
            arguments = {}
        (_, *names) = signature.parameters
        instance.init_args = {name: arguments[name] for name in names if name in arguments}
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                instance.init_args.update(instance.init_args.pop(name, {}))
        return instance
