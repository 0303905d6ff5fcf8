"""The Triton kernels compiled to machine code of GPUs that are not there: types and shapes that the
interpreter lets pass are errors here. `tests/test_gpu.py` runs it.
"""

import inspect

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from loraens.model.kernels import attention, low_rank, norm, operators, optimiser

TYPES = {
    **dict.fromkeys(("first", "second", "q_offsets", "k_offsets", "ends"), "*i32"),
    **dict.fromkeys(("sequence", "position", "table", "rows"), "*i64"),
    **dict.fromkeys(("mean", "rstd", "lse", "sums", "corrections"), "*fp32"),
    **dict.fromkeys(("rates", "decays", "factors"), "*fp32"),
    **dict.fromkeys(("eps", "scale", "factor"), "fp32"),
    **dict.fromkeys(("width", "threshold", "kv_stride", "heads", "members"), "i32"),
    **dict.fromkeys(("inputs", "outputs", "ranks", "x_stride", "out_stride"), "i32"),
    **dict.fromkeys(("first_rank", "first_input", "second_output", "second_rank"), "i32"),
    **dict.fromkeys(("grad_rank", "grad_input"), "i32"),
    "active": "*i1",
    "scales": "*fp32",
}
OF_NORM = {"BLOCK": 512, "DROP": True}
OF_ATTENTION = {"WIDTH": 32, "BLOCK_W": 32, "DROP": True, "PRECISION": "tf32"}
OF_LOW_RANK = {"RANK": 64, "BLOCK": 64, "COLUMNS": 64, "PRECISION": "tf32"}
OF_ADAMW = {"BLOCK": 1024, "NUMBER": tl.float32}
KERNELS = [
    (norm.add_norm, OF_NORM),
    (norm.add_norm, {**OF_NORM, "DROP": False}),
    (norm.add_norm_backward, OF_NORM),
    (norm.drop_tokens, {"BLOCK": 1024}),
    (attention.attend, OF_ATTENTION),
    (attention.attend, {**OF_ATTENTION, "WIDTH": 64, "BLOCK_W": 64, "DROP": False}),
    (attention.attend_backward_kv, OF_ATTENTION),
    (attention.attend_backward_kv, {**OF_ATTENTION, "WIDTH": 64, "BLOCK_W": 64}),
    (attention.attend_backward_q, {**OF_ATTENTION, "WIDTH": 64, "BLOCK_W": 64}),
    (attention.attend_backward_q, {**OF_ATTENTION, "PRECISION": "ieee"}),
    (low_rank.add_product, {**OF_LOW_RANK, "SCALED": 1, "ADD": True}),
    (low_rank.add_product, {**OF_LOW_RANK, "SCALED": 2, "ADD": False, "RANK": 16}),
    (low_rank.inner_gradient, {**OF_LOW_RANK, "SCALED": True}),
    (optimiser.squares, {**OF_ADAMW, "PARTS": 8}),
    (optimiser.adamw, {**OF_ADAMW, "EPS": 1e-8, "BETA1": 0.9, "BETA2": 0.999}),
]


@pytest.mark.parametrize("number", ["bf16", "fp32"])
@pytest.mark.parametrize(("kernel", "constants"), KERNELS, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
def test_compiles(kernel, constants, number):
    if "WIDTH" in constants:
        block = operators.block_of(512, constants["WIDTH"], 2 if number == "bf16" else 4)
        constants = {**constants, "BLOCK": block}
    types = TYPES
    if "RANK" in constants:
        constants = {**constants, "COLUMNS": 64 if number == "bf16" else 32}
        types = {**TYPES, "first": "*fp32", "second": "*fp32"}
        types["grad"] = "*fp32"
    names = list(inspect.signature(kernel.fn).parameters)
    signature = {
        name: "constexpr" if name in constants else types.get(name, f"*{number}") for name in names
    }
    assert constants.keys() <= set(names)
    source = ASTSource(kernel, signature, constants)
    for capability in (80, 90):
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert len(made.asm["cubin"]) > 1000
        assert made.metadata.shared < 99 * 1024  # what a program may have on all of these GPUs
