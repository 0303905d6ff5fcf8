"""Parameters of a class, read from its source: importing it would take seconds.

What is read is what our own code and Lightning's `Trainer` contain: typed arguments of `__init__`,
defaults that are literals, docstrings in Google style, and `**kwargs` for the base class.
"""

from __future__ import annotations

import ast
import builtins
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docstring_parser import parse

NAMES = {
    **vars(builtins),
    **vars(typing),
    "Sequence": Sequence,
    "Mapping": Mapping,
}  # of annotations


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Args:
        name: Its name.
        type: Its type; `Any` where that is a class of another module.
        default: Its default; None also where it has none.
        help: Its entry in the docstring.
    """

    name: str
    type: Any
    default: Any
    help: str


@cache
def _tree(module: str) -> ast.Module:
    """The source of a module below a package; only the package itself would be imported by
    `find_spec`, so that nothing is.
    """
    package, *names = module.split(".")
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]).joinpath(*names)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _class(module: str, name: str) -> ast.ClassDef:
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"{module} has no class {name}")


def _origin(module: str, name: str) -> str | None:
    """The module that a name is imported from, if it is."""
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return node.module
    return None


def _type(annotation: ast.expr | None, module: str) -> Any:
    """The type that an annotation names."""
    if annotation is None:
        return Any
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    known = {name: _alias(name, module) for name in names - NAMES.keys()}
    try:
        return eval(ast.unparse(annotation), {**NAMES, **known})
    except (NameError, AttributeError, TypeError):
        return Any


def _alias(name: str, module: str) -> Any:
    """What a name of our own modules stands for in annotations, such as `Mode`; else `Any`."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return _type(node.value, module)
    origin = _origin(module, name)
    return _alias(name, origin) if origin and origin.startswith("loraens.") else Any


def _default(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def parameters(module: str, name: str) -> list[Parameter]:
    """Parameters of a class, in order, then those of its bases where it takes `**kwargs`.

    Args:
        module: Import path of the module.
        name: Name of the class; a dataclass has its fields.

    Raises:
        LookupError: The module has no such class.
    """
    module = _origin(module, name) or module
    node = _class(module, name)
    init = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    found: list[tuple[str, ast.expr | None, ast.expr | None]] = []
    if init is None:
        found += [
            (n.target.id, n.annotation, n.value)
            for n in node.body
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        ]
    else:
        args = init.args
        plain = args.args[1:]
        padded = [*[None] * (len(plain) - len(args.defaults)), *args.defaults]
        for argument, default in [
            *zip(plain, padded, strict=True),
            *zip(args.kwonlyargs, args.kw_defaults, strict=True),
        ]:
            found.append((argument.arg, argument.annotation, default))
    texts: dict[str, str] = {}
    for documented in (node, init):
        text = None if documented is None else ast.get_docstring(documented)
        for entry in parse(text or "").params:
            texts[entry.arg_name] = " ".join((entry.description or "").split())
    own = [
        Parameter(name, _type(annotation, module), _default(default), texts.get(name, ""))
        for name, annotation, default in found
    ]
    if init is not None and init.args.kwarg is not None:
        for base in node.bases:
            if isinstance(base, ast.Name):
                inherited = parameters(module, base.id)
                own += [p for p in inherited if p.name not in {known.name for known in own}]
    return own


def registered(modules: Sequence[str], registry: str, group: str) -> list[str]:
    """Names that modules put into a registry, and those of installed packages.

    Args:
        modules: The modules that have the calls of `register`.
        registry: Name of the registry, such as "ADAPTERS".
        group: Its group of entry points, without "loraens.".
    """
    names = [
        str(ast.literal_eval(node.args[0]))
        for module in modules
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{registry}.register"
    ]
    return [*names, *(entry.name for entry in entry_points(group=f"loraens.{group}"))]
