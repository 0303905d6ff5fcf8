"""Adapters that PEFT trained, read from its files; what cannot be taken is refused.

Shape letters: r rank of a layer, I inputs and O outputs of an adapted layer, C outputs and D inputs
of a head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from loraens.errors import InputError
from loraens.model.injection import linears_of
from loraens.model.weights import ADAPTER, ADAPTER_CONFIG, HEADS, PREFIX, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PICKLE = "adapter_model.bin"
PARTS = ("weight", "bias")  # of a head
STARTS = (True, False, "gaussian", "orthogonal", "eva")  # that leave the backbone's weights alone
# fields of `LoraConfig` that are read here, or change nothing once the adapter is trained
KNOWN = frozenset(
    (
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
        "velora_config",
    )
)


class Layer(NamedTuple):
    """A layer's change: scale * up @ down, and of DoRA the magnitude.

    Args:
        down: A `(r, I)`.
        up: B `(O, r)`.
        scale: alpha / r, or alpha / sqrt(r) where it is rank-stabilised.
        magnitude: `(O,)` of DoRA; else None.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as PEFT saved it.

    Args:
        directory: Where it is.
        config: The fields of adapter_config.json.
        layers: The adapted layers, by their names in the model that PEFT adapted.
        others: Tensors that are no adapters' (`modules_to_save`), by their names there.
        heads: Tensors of heads.safetensors beside the adapter, by `<task>.weight` and
            `<task>.bias`.
    """

    directory: Path
    config: Mapping[str, Any]
    layers: dict[str, Layer]
    others: dict[str, Tensor]
    heads: dict[str, Tensor]

    @property
    def base(self) -> str:
        """Name or directory of the model that was adapted; empty where it is not known."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def kind(self) -> str:
        """The adapter kind."""
        if self.config.get("use_dora"):
            return "dora"
        return "rslora" if self.config.get("use_rslora") else "lora"

    @classmethod
    def read(cls, directory: Path) -> PeftAdapter:
        """The adapter in a directory.

        Raises:
            InputError: There is none, its files are damaged, or it is of a kind that a member
                cannot be.
        """
        config = _config(directory)
        tensors: dict[str, dict[str, Tensor]] = {}
        others: dict[str, Tensor] = {}
        for key, tensor in read_tensors(directory / ADAPTER).items():
            name = key.removeprefix(PREFIX)
            part = re.fullmatch(r"(.+)\.(lora_(?:A|B|magnitude_vector))(?:\.weight)?", name)
            if part:
                tensors.setdefault(part[1], {})[part[2]] = tensor.float()
            else:
                others[name] = tensor.float()
        layers = {name: _layer(directory, name, of, config) for name, of in tensors.items()}
        if not layers:
            raise InputError(f"{directory} has no weights of adapters of linear layers")
        beside = directory / HEADS
        heads = read_tensors(beside) if beside.is_file() else {}
        return cls(directory, config, layers, others, heads)

    def on(self, encoder: PreTrainedModel) -> dict[str, Layer]:
        """The adapted layers by their names in an encoder.

        Raises:
            InputError: One is no layer of it that can be adapted, or of another size.
        """
        linears = dict(linears_of(encoder))
        found = {}
        for name, layer in self.layers.items():
            inside = self._inside(name, encoder)
            if inside not in linears:
                raise InputError(
                    f"{self.directory} adapts {name}, and what can be adapted here are the linear"
                    " layers of the backbone, without its pooler: train the adapter with other"
                    " target_modules"
                )
            _check_shapes(self.directory, name, layer, linears[inside])
            found[inside] = layer
        return found

    def others_in(self, encoder: PreTrainedModel) -> list[str]:
        """Names of tensors that are no adapters', and that are the encoder's own or its
        embeddings' adapters.
        """
        weights = encoder.state_dict()
        return [
            name
            for name in self.others
            if self._inside(name, encoder) in weights or "lora_" in name
        ]

    def _inside(self, name: str, encoder: PreTrainedModel) -> str:
        """A name in the adapted model as one in its encoder; a classifier has the encoder as a
        part.
        """
        return name.removeprefix(f"{encoder.base_model_prefix}.")

    def head(self, task: str) -> tuple[Tensor, Tensor, str | None]:
        """Weight `(C, D)` and bias `(C,)` of the head, and its name in PEFT's classifier; None of
        heads.safetensors.

        Args:
            task: Name of the task.

        Raises:
            InputError: There is none, or it is not one linear layer.
        """
        names = {name.rpartition(".")[0] for name in self.others}
        if self.others and (
            len(names) > 1 or not self.others.keys() <= {f"{n}.{p}" for n in names for p in PARTS}
        ):
            raise InputError(
                f"{self.directory} has weights beside its adapters ({', '.join(sorted(names))}),"
                " and a member has none but one linear layer as its head, over a pooling of the"
                " backbone: train it with such a head alone in modules_to_save"
            )
        tensors, name = (self.others, names.pop()) if names else (self.heads, None)
        weight = tensors.get(f"{name or task}.weight")
        if weight is None or weight.ndim != 2:
            raise InputError(
                f"{self.directory} has no head, which a member needs: train it as a classifier,"
                f" with the head in modules_to_save, or put {HEADS} beside it, with"
                f" {task}.weight (C, D) and {task}.bias (C)"
            )
        bias = tensors.get(f"{name or task}.bias")
        return weight, weight.new_zeros(len(weight)) if bias is None else bias, name


def _config(directory: Path) -> dict[str, Any]:
    """The fields of adapter_config.json.

    Raises:
        InputError: It is missing or damaged, or says what a member cannot have.
    """
    path = directory / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{directory} has no adapter of PEFT: give a directory with {ADAPTER_CONFIG}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): save the adapter again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is no JSON object: save the adapter again")
    if not (directory / ADAPTER).is_file() and (directory / PICKLE).is_file():
        raise InputError(
            f"{directory} has {PICKLE}, a pickle, which can run code when it is read: save it as"
            f" {ADAPTER} (save_pretrained of a recent peft)"
        )
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{directory} is of peft_type {config.get('peft_type')}: LORA is expected, with or"
            " without use_rslora and use_dora"
        )
    if config.get("bias", "none") != "none":
        raise InputError(
            f"{directory} has trained biases of the backbone (bias {config['bias']!r}), and members"
            " have none: train it with bias 'none'"
        )
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        raise InputError(
            f"{directory} was begun with init_lora_weights {start!r}, which changes the backbone's"
            " own weights: save it by peft's save_pretrained with"
            " path_initial_model_for_weight_conversion"
        )
    unknown = sorted(name for name, value in config.items() if value and name not in KNOWN)
    if unknown:
        raise InputError(
            f"{directory} has {unknown[0]}, which members cannot have: train it without"
        )
    return config


def _layer(
    directory: Path, name: str, tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> Layer:
    """The change of a layer.

    Raises:
        InputError: A tensor is missing, or the scale is no positive number.
    """
    down, up = tensors.get("lora_A"), tensors.get("lora_B")
    magnitude = tensors.get("lora_magnitude_vector")
    dora = bool(config.get("use_dora"))
    if down is None or up is None or dora != (magnitude is not None):
        raise InputError(
            f"{directory / ADAPTER} does not have what its {ADAPTER_CONFIG} says of layer {name}:"
            " save the adapter again"
        )
    try:
        rank = len(down)
        alpha = config.get("lora_alpha", 8)
        for key, own in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({key})$", name):  # as PEFT's get_pattern_key
                alpha = own
                break
        scale = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error):
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise InputError(
            f"{directory / ADAPTER_CONFIG} gives layer {name} no scale: lora_alpha and"
            " alpha_pattern with positive numbers are expected"
        )
    return Layer(down, up, scale, magnitude)


def _check_shapes(directory: Path, name: str, layer: Layer, linear: nn.Linear) -> None:
    """Refuse a layer of another size than the backbone's."""
    rank = len(layer.down)
    expected: list[tuple[int, ...]] = [(rank, linear.in_features), (linear.out_features, rank)]
    shapes: list[tuple[int, ...]] = [tuple(layer.down.shape), tuple(layer.up.shape)]
    if layer.magnitude is not None:
        expected.append((linear.out_features,))
        shapes.append(tuple(layer.magnitude.shape))
    if shapes != expected:
        raise InputError(
            f"{directory} does not fit the backbone: layer {name} is {linear.in_features} wide in"
            f" and {linear.out_features} out, and the adapter's weights have the shapes"
            f" {', '.join(map(str, shapes))}"
        )
