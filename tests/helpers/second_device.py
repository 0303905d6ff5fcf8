# ruff: noqa: E402
"""A second device without a GPU: tensors that say `cuda:0`, with their numbers held on the CPU.

Dispatch is real (CUDA's autocast lists, autograd's device thread, every branch on the device's
type); kernels, streams, memory and Lightning's Trainer are not. It finds tensors of different
devices and types in one operator. It must be imported before torch, in a process of its own, as
PyTorch looks for its device hooks once.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

if "torch" in sys.modules:
    raise ImportError("import second_device before torch")


def _load_guard() -> None:
    """Load a device guard and hooks that do nothing, compiled once by g++ in some 10 s."""
    library = Path(tempfile.gettempdir()) / f"loraens_second_device_{version('torch')}.so"
    if not library.exists():
        root = Path(find_spec("torch").origin).parent
        includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
        link = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
        source = str(Path(__file__).with_suffix(".cpp"))
        part = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-O0", "-fPIC", "-shared", *includes]
        subprocess.run(["g++", *flags, source, *link, "-o", str(part)], check=True)
        part.replace(library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


_load_guard()
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from loraens.model.fast_layer import FastLayer

torch.cuda._lazy_init = lambda: None
aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
MOVES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.index_put.default,
}


class Held(torch.Tensor):
    """A tensor that says `cuda:0`."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    """Run an operator on the tensors that are held; the result is on the device if they were."""
    flat, spec = tree_flatten((args, kwargs))
    held = [x for x in flat if isinstance(x, Held)]
    plain = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Held)]
    device, here = kwargs.get("device"), bool(held)
    if device is not None:
        here = torch.device(device).type == "cuda"
    if held and any(x.dim() for x in plain) and func not in MOVES and func not in INDEXING:
        shapes = [tuple(x.shape) for x in plain]
        raise RuntimeError(f"{func}: {shapes} on the CPU, the others on {DEVICE}")
    if func is aten.copy_.default:
        here = isinstance(args[0], Held)
    back = {id(x.held): x for x in held}
    args, kwargs = tree_unflatten([x.held if isinstance(x, Held) else x for x in flat], spec)
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Held):
            return x
        return back.get(id(x)) if id(x) in back else (Held(x) if here else x)

    return tree_map(wrapped, func(*args, **kwargs))


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """Lists to tensors and back: made on the CPU and then copied, as PyTorch does with CUDA."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func is torch.tensor and device is not None and torch.device(device).type == "cuda":
            others = {k: v for k, v in kwargs.items() if k != "device"}
            return torch.tensor(*args, **others).to(DEVICE)
        if func is torch.Tensor.new_tensor and args[0].device.type == "cuda":
            return torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        if func is torch.Tensor.tolist:
            return args[0].to("cpu").tolist()
        return func(*args, **kwargs)


@contextmanager
def second_device():
    """Within it tensors may be on `cuda:0`."""
    with _Dispatch(), _Lists():
        yield DEVICE


@contextmanager
def autocast_bf16():
    """What `torch.autocast("cuda", torch.bfloat16)` sets on a build that has CUDA."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


def to_second_device(model: torch.nn.Module) -> torch.nn.Module:
    """Move parameters and buffers (a plain `.to` assigns `.data`, which a wrapper cannot take)."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                moved = torch.nn.Parameter(parameter.data.to(DEVICE), parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.to(DEVICE)
    return model


def _fuse(layer: FastLayer, dtype: torch.dtype) -> None:
    """`FastLayer.fuse` for tensors that have neither `data_ptr` nor `.data` that can be set."""
    if layer.weight.dtype == dtype and layer.weight.device == DEVICE:
        return
    trained = {id(parameter) for parameter in layer.trained_parameters()}
    for module in layer.stock.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) not in trained:
                module._parameters[name] = torch.nn.Parameter(parameter.data.to(dtype), False)
    layer.weight = torch.cat([layer.key.weight.data, layer.value.weight.data])
    layer.bias = torch.cat([layer.key.bias.data, layer.value.bias.data])


FastLayer.fuse = _fuse
