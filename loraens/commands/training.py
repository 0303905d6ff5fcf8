"""`loraens fit | sweep | validate | test` before Lightning is imported, which takes seconds: help
of our own options, and errors of options that there are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from loraens.commands.parser import ALLOW, Parser, unknown_option
from loraens.commands.signature import Parameter, parameters, registered
from loraens.data.imports import allow, check_imports
from loraens.errors import InputError
from loraens.labels import LABEL_KINDS

PURPOSES = {
    "fit": "Train one member.",
    "sweep": "Train a grid of members at once on one backbone.",
    "validate": "Score a checkpoint on dev.",
    "test": "Score a checkpoint on a labelled test split.",
}
DATA = ("SST", "Quora", "STS", "Multitask", "TextFiles")  # our data modules
SECTIONS = ("data", "model", "trainer", "grid", "sweep")  # each may be given as a file, too
BESIDE = (".loraens", "sweep.json", "last.ckpt", "examples")  # in the directory of a run
OTHER = "TextData"  # any other: it has the options of the class that it derives from
LINKED = {"data.backbone", "data.sources", "model.members", "model.tasks"}  # no options
OF_LIGHTNING = ("seed_everything", "verbose", "weights_only", "print_shtab")


def main(args: list[str]) -> None:
    """Run a command with its options; help and refusals import neither Lightning nor torch.

    Args:
        args: Name of the command, and its arguments.

    Raises:
        InputError: An option is unknown, or its value is of another type.
    """
    command, *rest = args
    rest, _ = _without_allowed(rest)
    if "-h" in rest or "--help" in rest:
        Options(command).parser().print_help()
    elif (name := _data_help(rest)) is not None:
        Options(command, name or None).parser("texts").print_help()
    else:
        rest = checked(command, args[1:])
        rest = ["--help" if argument == "--help-all" else argument for argument in rest]
        module = import_module(f"loraens.commands.{'sweep' if command == 'sweep' else 'fit'}")
        module.main(rest if command == "sweep" else [command, *rest])


def checked(command: str, args: list[str]) -> list[str]:
    """The arguments of a command without `--allow`, whose modules may then be imported.

    Raises:
        InputError: An option is unknown, its value is of another type, or a file of a run names
            what it may not.
    """
    rest, allowed = _without_allowed(args)
    check(command, rest)
    allow(allowed)
    for file in configs_of(rest):
        if of_run(Path(file)):
            check_imports(settings_in(file), file)
            _check_address(file, rest)
    return rest


class Options:
    """The options of a command that trains or scores.

    Args:
        command: The command.
        data: Name of the data module that was chosen, `OTHER` where it is not ours; None for all.
    """

    def __init__(self, command: str, data: str | None = None) -> None:
        self.command = command
        self.data = data

    @cached_property
    def groups(self) -> dict[str, list[Parameter]]:
        """Our own options by title, their names without dashes."""
        groups = {f"texts, --data {self.data or ' | '.join(DATA)}": self._data()}
        groups["model"] = _under("model", "loraens.commands.fit", "LoraModule")
        if self.command == "sweep":
            groups["grid: lists that are crossed; what is not given is that of --model"] = _under(
                "grid", "loraens.members", "Grid"
            )
            groups["how the members are trained together"] = _under(
                "sweep", "loraens.train.options", "SweepOptions"
            )
        run = "Name of this run; made from task and member by default."
        groups["runs"] = [
            Parameter("store.root", str, "checkpoints", "Directory of all runs."),
            Parameter("store.run", str | None, None, run),
        ]
        return groups

    def _data(self) -> list[Parameter]:
        """Options of the texts; those that not all data modules have say which do."""
        classes: dict[str, list[str]] = {}
        found: dict[str, Parameter] = {}
        for name in [self.data] if self.data else DATA:
            for parameter in _under("data", "loraens.data.modules", name):
                classes.setdefault(parameter.name, []).append(name)
                found[parameter.name] = parameter
        everywhere = 1 if self.data else len(DATA)
        return sorted(
            (
                parameter
                if len(classes[name]) == everywhere
                else replace(parameter, help=f"[{', '.join(classes[name])}] {parameter.help}")
                for name, parameter in found.items()
            ),
            key=lambda parameter: -len(classes[parameter.name]),
        )

    @cached_property
    def own(self) -> dict[str, Parameter]:
        """Our own options by name."""
        return {option.name: option for group in self.groups.values() for option in group}

    @cached_property
    def trainer(self) -> list[str]:
        """Names of the options of Lightning's `Trainer`."""
        return [p.name for p in parameters("lightning.pytorch.trainer.trainer", "Trainer")]

    @cached_property
    def names(self) -> list[str]:
        """Names of all options, but for those of objects in them."""
        sections = SECTIONS if self.command == "sweep" else SECTIONS[:3]
        names = ["help", "help-all", "config", "print_config", "data.help", *OF_LIGHTNING]
        names += ["dry-run"] if self.command == "sweep" else ["ckpt_path"]
        return [*names, *sections, *self.own, *(f"trainer.{name}" for name in self.trainer)]

    def has(self, name: str) -> bool:
        """Whether there is an option of that name, or there may be, as a field of an object."""
        parts = name.rstrip("+").replace("data.init_args.", "data.").split(".")
        if parts[0] == "data" and (self.data == OTHER or parts[-1] in ("class_path", "init_args")):
            return True
        return ".".join(parts[:2]) in self.names

    def unknown(self, name: str, dashes: str = "--") -> InputError:
        """The error of an option that there is not."""
        if Options(self.command).has(name):
            return InputError(
                f"{dashes}{name} is not an option of {self.data}:"
                f" `loraens {self.command} --data.help {self.data}` lists them"
            )
        known = [dashes + known for known in self.names]
        return unknown_option(self.command, dashes + name, known)

    def parser(self, titles: str = "") -> Parser:
        """The parser of our own options, or of the groups whose titles begin like that."""
        parser = Parser(
            self.command,
            PURPOSES[self.command],
            usage=f"loraens {self.command} --config FILE [options]",
            epilog=None if titles else self._epilog(),
            add_help=not titles,
        )
        if not titles:
            self._add_general(parser)
        for title, options in self.groups.items():
            if not title.startswith(titles):
                continue
            group = parser.add_argument_group(title)
            for option in options:
                group.add_argument(
                    f"--{option.name}",
                    type=option.type,
                    default=option.default,
                    help=" ".join([option.help, *_choices(option.name)]),
                )
        return parser

    def _epilog(self) -> str:
        return (
            f"Options of Lightning's Trainer, --trainer.NAME: {', '.join(self.trainer)}."
            f" `loraens {self.command} --help-all` explains them."
        )

    def _add_general(self, parser: Parser) -> None:
        flag: dict[str, Any] = {"action": "store_true"}
        parser.add_argument("--help-all", **flag, help="Show Lightning's options, too.")
        parser.add_argument(
            "-c", "--config", help="YAML file of options; may be given again, later ones on top."
        )
        parser.add_argument(
            "--print_config", **flag, help="Print all settings as YAML, and do nothing else."
        )
        parser.add_argument("--data", help="Class of the texts; --data.help CLASS explains it.")
        parser.add_argument("--allow", help=f"{ALLOW} May be given again.")
        if self.command == "sweep":
            parser.add_argument("--dry-run", **flag, help="Print the plan, and train nothing.")
        else:
            use = "to go on from" if self.command == "fit" else "to score"
            parser.add_argument("--ckpt_path", help=f"The checkpoint {use}, RUN/last.ckpt.")


def _choices(option: str) -> Iterator[str]:
    """A sentence that lists the values of an option that are registered by name."""
    if option in ("model.adapter", "grid.adapter"):
        modules = ("loraens.model.lora", "loraens.model.rslora", "loraens.model.dora")
        yield f"There are: {', '.join(registered(modules, 'ADAPTERS', 'adapters'))}."
    elif option == "sweep.engine":
        names = registered(["loraens.train.executors"], "EXECUTORS", "executors")
        yield f"There are: {', '.join(names)}."
    elif option == "data.kind":
        yield f"There are: {', '.join(LABEL_KINDS)}."
    elif option in ("data.metric", "data.loss"):
        kinds = (
            f"{', '.join(kind.losses if option == 'data.loss' else [m.name for m in kind.metrics])}"
            f" for {name}"
            for name, kind in LABEL_KINDS.items()
        )
        yield f"There are: {'; '.join(kinds)}."


def _under(section: str, module: str, name: str) -> list[Parameter]:
    """The parameters of a class as options of a section."""
    options = [replace(p, name=f"{section}.{p.name}") for p in parameters(module, name)]
    return [option for option in options if option.name not in LINKED]


def check(command: str, args: list[str]) -> None:
    """Refuse options, on the command line and in configuration files, that there are not, and
    values of our own options that are of another type.

    What only Lightning or another module can judge is let through.

    Raises:
        InputError: It names the option, and what was perhaps meant.
    """
    pairs = list(_pairs(args))
    configs = {file: settings_in(file) for file in configs_of(args)}
    options = Options(command, _data_class(pairs, configs.values()))
    for name, _ in pairs:
        if name != "c" and not options.has(name):
            raise options.unknown(name)
    for file, settings in configs.items():
        for name in _keys(settings):
            if name not in LINKED and not options.has(name.replace("dry_run", "dry-run")):
                raise InputError(f"{file}: {options.unknown(name, dashes='')}")
    typed = [(name, value) for name, value in pairs if name in options.own and value is not None]
    seeds = [value for name, value in pairs if name == "seed_everything"]
    for seed in [*seeds, *(settings.get("seed_everything") for settings in configs.values())]:
        _check_seed(seed)
    parser = options.parser()
    for name, value in typed:
        try:
            parser.parse_args([f"--{name}={value}"])
        except InputError:
            if not Path(value).is_file():  # which may have it
                raise


def _check_address(file: str, args: list[str]) -> None:
    """Refuse the cluster that the settings of a run name, unless it is given anew: what its workers
    answer is unpickled, which runs code.

    Raises:
        InputError: It names the address.
    """
    section = settings_in(file).get("sweep")
    address = section.get("address") if isinstance(section, dict) else None
    if address is not None and not any(name == "sweep.address" for name, _ in _pairs(args)):
        raise InputError(
            f"{file} names the Ray cluster {address}, which could run code here: if you trust it,"
            f" give --sweep.address {address}"
        )


def _check_seed(seed: Any) -> None:
    """Refuse a seed of Lightning's that NumPy does not take."""
    text = str(seed).lower()
    fits = text in ("none", "null", "true", "false") or (text.isdecimal() and int(text) < 2**32)
    if not fits:
        raise InputError(
            f"--seed_everything {seed}: true, false or a whole number from 0 to {2**32 - 1} is"
            " expected"
        )


def _without_allowed(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--allow`, which no file of settings may have, and its values."""
    rest: list[str] = []
    allowed: list[str] = []
    arguments = iter(args)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != "--allow":
            rest.append(argument)
            continue
        value = value if equals else next(arguments, "")
        if not value or value.startswith("-"):
            raise InputError("--allow is given no value: the name of a module is expected")
        allowed.append(value)
    return rest, allowed


def of_run(file: Path) -> bool:
    """Whether a file of settings is one that a training wrote, which may be a stranger's."""
    return file.name == "config.yaml" and any((file.parent / name).exists() for name in BESIDE)


def configs_of(args: list[str]) -> list[str]:
    """The configuration files on a command line."""
    return [value for name, value in _pairs(args) if name in ("c", "config") and value is not None]


def _pairs(args: list[str]) -> Iterator[tuple[str, str | None]]:
    """Options without dashes, each with its value, if it has one."""
    for index, argument in enumerate(args):
        if not re.match(r"--\w|-c$|-c=", argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        following = args[index + 1] if index + 1 < len(args) else "--"
        yield name, value if equals else None if following.startswith("--") else following


def settings_in(file: str) -> dict[str, Any]:
    """The settings in a configuration file; none where it is no YAML mapping, which Lightning then
    says.

    Raises:
        InputError: There is no such file.
    """
    if not Path(file).exists():
        raise InputError(f"--config {file}: there is no such file")
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    return content if isinstance(content, dict) else {}


def _keys(settings: dict[str, Any]) -> Iterator[str]:
    """Names of the options that settings have."""
    for section, value in settings.items():
        if isinstance(value, dict):
            fields = value.get("init_args") if section == "data" else value
            yield from (f"{section}.{name}" for name in fields or {})
        else:
            yield str(section)


def _data_class(pairs: list[tuple[str, str | None]], configs: Any) -> str | None:
    """Name of the data module that is chosen; None where none is, `OTHER` where it is not ours."""
    sections = [config["data"] for config in configs if config.get("data")]
    chosen = [s.get("class_path") if isinstance(s, dict) else s for s in sections]
    chosen += [value for name, value in pairs if name in ("data", "data.class_path")]
    given = [str(value) for value in chosen if value is not None]
    if not given:
        return None
    module, _, name = given[-1].rpartition(".")
    return name if name in DATA and module.partition(".")[0] in ("", "loraens") else OTHER


def _data_help(args: list[str]) -> str | None:
    """Name of our data module whose help is asked for; empty for all of them, None where the help
    of another or none is.
    """
    wanted = [value or "" for name, value in _pairs(args) if name == "data.help"]
    if not wanted or not wanted[0]:
        return wanted[0] if wanted else None
    name = _data_class([("data", wanted[0])], ())
    return name if name in DATA else None
