# ruff: noqa: E402
"""A second device without a GPU: tensors that say `cuda:0`, with their numbers held on the CPU.

Dispatch is real (CUDA's autocast lists, autograd's device thread, every branch on the device's
type); kernels, streams, memory and Lightning's Trainer are not. It finds tensors of different
devices and types in one operator, and notes where a GPU's host would wait for it. It must be
imported before torch, in a process of its own, as PyTorch looks for its device hooks once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

if "torch" in sys.modules:
    raise ImportError("import second_device before torch")


def _load_guard() -> None:
    """Load a device guard and hooks that do nothing, compiled once by g++ in some 10 s."""
    root = Path(find_spec("torch").origin).parent
    # another environment's torch is elsewhere, and may be gone
    key = hashlib.sha256(f"{root} {version('torch')}".encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"loraens_second_device_{key}.so"
    if not library.exists():
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
# operators that copy a size or a number from the device
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
}


class Device:
    """What is held, and what is noted.

    Attributes:
        place: Where the numbers are: "cpu", or "meta" for shapes without numbers.
        waits: Places in the code at which the host of a GPU would wait for it.
        watch: Is called with every operator on the device, its arguments and its result.
    """

    place = "cpu"
    waits: list[str] = []
    watch: Callable[..., None] | None = None
    pinned: list[torch.UntypedStorage] = []  # kept, so that no other memory gets their addresses


def is_pinned(x: torch.Tensor) -> bool:
    """Whether memory of the host is page-locked, from which copies need not be waited for."""
    address = x.untyped_storage().data_ptr()
    return any(address == storage.data_ptr() for storage in Device.pinned)


def _waits(func, args, kwargs) -> bool:
    """Whether a GPU's host waits in an operator."""
    if func in MOVES:
        source, target = (args[1], args[0]) if func is aten.copy_.default else (args[0], None)
        up = not isinstance(source, Held)
        if up and target is not None and not isinstance(target, Held):
            return False
        if not up and (isinstance(target, Held) or (target is None and _stays(kwargs))):
            return False
        non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
        return not (non_blocking and up and is_pinned(source))
    if func in READS:
        return True
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func is aten.segment_reduce.default:
        return not kwargs.get("unsafe", False)
    if func in INDEXING:
        indices = [index for index in args[1] if index is not None]
        return any(i.dtype == torch.bool or not isinstance(i, Held) for i in indices)
    return False


def _stays(kwargs) -> bool:
    device = kwargs.get("device")
    return device is None or torch.device(device).type == "cuda"


def _note_wait(func) -> None:
    package = f"{os.sep}loraens{os.sep}"
    frames = [f for f in traceback.extract_stack() if package in f.filename]
    place = "elsewhere"
    if frames:
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    Device.waits.append(f"{place} {func}")


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
    if (held or here) and _waits(func, args, kwargs):
        _note_wait(func)
    if held and any(x.dim() for x in plain) and func not in MOVES and func not in INDEXING:
        shapes = [tuple(x.shape) for x in plain]
        raise RuntimeError(f"{func}: {shapes} on the CPU, the others on {DEVICE}")
    if func is aten.copy_.default:
        here = isinstance(args[0], Held)
    given = args, kwargs
    back = {id(x.held): x for x in held}
    args, kwargs = tree_unflatten([x.held if isinstance(x, Held) else x for x in flat], spec)
    if device is not None:
        kwargs["device"] = torch.device(Device.place if here else "cpu")
    pin = kwargs.get("pin_memory", False)
    if pin:
        kwargs["pin_memory"] = False

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Held):
            return x
        if id(x) in back:
            return back[id(x)]
        return Held(x.to(Device.place)) if here else x

    shapes = Device.place == "meta" and (held or here)
    result = _shapes(func, args, kwargs, here) if shapes else func(*args, **kwargs)
    if pin:
        Device.pinned.append(result.untyped_storage())
    result = tree_map(wrapped, result)
    if (held or here) and Device.watch is not None:
        Device.watch(func, *given, result)
    return result


def _shapes(func, args, kwargs, here):
    """Run an operator on tensors without numbers; what is read from them is 0."""
    if func in READS:
        return 0
    if func in MOVES and not here:
        source = args[1] if func is aten.copy_.default else args[0]
        if func is aten.copy_.default:
            return args[0]
        kwargs = {"dtype": kwargs.get("dtype") or source.dtype, "device": "cpu"}
        return torch.zeros(source.shape, **kwargs)
    if here:
        args, kwargs = tree_map(
            lambda x: x.to("meta") if isinstance(x, torch.Tensor) and x.dim() else x, (args, kwargs)
        )
    return func(*args, **kwargs)


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
def second_device(place: str = "cpu"):
    """Within it tensors may be on `cuda:0`, their numbers on the CPU or, on "meta", nowhere."""
    Device.place = place
    try:
        with _Dispatch(), _Lists():
            yield DEVICE
    finally:
        Device.place = "cpu"


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
