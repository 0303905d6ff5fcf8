"""The padding-free forward against the stock padded models."""

import numpy as np
import pytest
import torch
from helpers.encoders import ARCHITECTURES, LENGTHS, examples

from loraens.members import Member
from loraens.model.backbone import load_encoder, max_positions
from loraens.model.batch import pack
from loraens.model.population import MemberModel
from loraens.tasks import SST


@pytest.fixture(params=ARCHITECTURES)
def architecture(request, tmp_path):
    kind, config, targets = ARCHITECTURES[request.param]
    torch.manual_seed(1)
    stock = kind(config).double().eval()
    stock.save_pretrained(tmp_path)
    return request.param, stock, load_encoder(str(tmp_path), pooler=False).double(), targets


def padded_hidden(name, stock, rows):
    """Hidden states of the stock model, one padded batch, as a list of (length, D)."""
    tokens, types, offsets = examples()
    longest = max(LENGTHS)
    ids, mask, type_ids = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    ids += stock.config.pad_token_id
    for place, row in enumerate(rows):
        part = slice(offsets[row], offsets[row + 1])
        length = LENGTHS[row]
        ids[place, :length] = torch.from_numpy(tokens[part].astype(np.int64))
        type_ids[place, :length] = torch.from_numpy(types[part].astype(np.int64))
        mask[place, :length] = 1
    typed = {"token_type_ids": type_ids} if name in ("bert", "electra") else {}
    hidden = stock(input_ids=ids, attention_mask=mask, **typed).last_hidden_state
    return [hidden[place, : LENGTHS[row]] for place, row in enumerate(rows)]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_equals_padded(architecture, pooling):
    name, stock, encoder, targets = architecture
    members = [Member(2, 1.0), Member(3, 2.0, seed=1)]
    model = MemberModel(encoder, [SST], members, targets=targets, pooling=pooling).double().eval()
    rows = np.array([[0, 1, 2], [4, 2, 3]])
    pooled = model.pooled(pack(*examples(), rows, None, "sst", "dev"))
    assert pooled.shape == (2, 3, 32)
    for member in range(2):  # B is zero, so every member is the backbone
        for got, hidden in zip(
            pooled[member], padded_hidden(name, stock, rows[member]), strict=True
        ):
            torch.testing.assert_close(
                got, hidden.mean(0) if pooling == "mean" else hidden[0], rtol=0, atol=1e-12
            )


def test_training_without_dropout_equals_evaluation(architecture):
    _, _, encoder, targets = architecture
    member = Member(2, 1.0, head_dropout=0.0)
    model = MemberModel(
        encoder, [SST], [member], targets=targets, pooling="cls", encoder_dropout=False
    ).double()
    batch = pack(*examples(), np.array([[0, 2, 3]]), None, "sst", "dev")
    model.train().seed_dropout(0)
    trained = model(batch)
    assert torch.equal(trained, model.train()(batch))
    torch.testing.assert_close(trained, model.eval()(batch), rtol=0, atol=1e-12)


def test_dropout_depends_on_member_and_counter_alone(architecture):
    _, _, encoder, targets = architecture
    members = [Member(2, 1.0, seed=5), Member(4, 3.0, seed=6)]
    together = (
        MemberModel(encoder, [SST], members, targets=targets, pooling="mean").double().train()
    )
    batch = pack(*examples(), np.array([[0, 2, 3], [1, 2, 4]]), None, "sst", "train")
    together.seed_dropout(3, 7)
    first = together(batch)
    together.seed_dropout(3, 8)
    assert not torch.allclose(first, together(batch))
    together.seed_dropout(3, 7)
    assert torch.equal(first, together(batch))
    for index, rows in enumerate([[0, 2, 3], [1, 2, 4]]):
        torch.manual_seed(index)  # the global generator has no say
        encoder = together.encoder
        alone = alone_model(architecture, members[index])
        alone.seed_dropout(3, 7)
        got = alone(pack(*examples(), np.array([rows]), None, "sst", "train"))
        torch.testing.assert_close(got[0], first[index], rtol=0, atol=1e-12)


def alone_model(architecture, member):
    from loraens.model.lora import LoRALinear

    _, stock, _, targets = architecture
    encoder = type(stock)(stock.config)
    encoder.load_state_dict(stock.state_dict())
    encoder.set_attn_implementation("loraens_packed")
    model = (
        MemberModel(encoder.double(), [SST], [member], targets=targets, pooling="mean")
        .double()
        .train()
    )
    assert any(isinstance(module, LoRALinear) for module in model.modules())
    return model


def test_longest_sequence_fits(architecture):
    name, _, encoder, _ = architecture
    assert max_positions(encoder) == (38 if name == "roberta" else 40)
