"""Masks, data order and start are the same bits on the emulated device as on the CPU, whatever is
computed in. `tests/test_gpu.py` runs it, and has a test for a real GPU: kernels are the CPU's here.
"""

import pytest
import torch
from helpers.masks import masked_model, masks_of
from helpers.second_device import DEVICE, autocast_bf16, second_device, to_second_device

from loraens.data.modules import SST
from loraens.members import Member
from loraens.train.module import Population


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_masks(monkeypatch, tmp_path, half):
    expected = masks_of(monkeypatch, masked_model(tmp_path), "cpu")
    with second_device():
        model = to_second_device(masked_model(tmp_path))
        context = autocast_bf16() if half else None
        found = masks_of(monkeypatch, model, DEVICE, context)
    assert len(found) == len(expected) > 6
    assert all(map(torch.equal, found, expected))


def test_start(corpus, tiny_bert):
    """Lightning makes the model where the default device is the GPU, which has other random
    numbers.
    """
    texts = SST(root=str(corpus), backbone=str(tiny_bert))

    def built():
        module = Population([Member(2, 1.0, seed=3)], texts.tasks, backbone=str(tiny_bert))
        module.build(texts.max_length)
        return module.model.state_dict()

    expected = built()
    with second_device(), DEVICE:
        found = built()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.device.type == "cpu", name
        assert torch.equal(tensor, expected[name]), name


def test_data_order(corpus, tiny_bert):
    texts = SST(root=str(corpus), backbone=str(tiny_bert))
    texts.setup("fit")
    sampler = texts.sampler([Member(2, 1.0, seed=3), Member(2, 1.0, seed=4)])
    batches = [texts.of("train")[index].batch(examples) for index, examples in sampler]
    with second_device():
        again = [texts.of("train")[index].batch(examples).to(DEVICE) for index, examples in sampler]
        for batch, moved in zip(batches, again, strict=True):
            assert moved.input_ids.device == DEVICE
            for name in ("input_ids", "position_ids", "indices", "labels"):
                assert torch.equal(getattr(moved, name).to("cpu"), getattr(batch, name))
