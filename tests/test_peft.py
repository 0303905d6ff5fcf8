"""One member against PEFT: trained in a plain loop, and loaded from disk."""

import numpy as np
import peft
import pytest
import torch
from helpers.stock import bracketing_tokenizer, write_stock
from lightning.pytorch import Trainer
from peft.optimizers import create_loraplus_optimizer
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

from loraens.data import modules as data
from loraens.data.sampling import TrainSampler
from loraens.data.tokens import tokenise
from loraens.members import Member
from loraens.model.backbone import load_encoder
from loraens.model.batch import pack
from loraens.model.population import MemberModel
from loraens.model.tokenizer import load_tokenizer
from loraens.model.weights import load_member, member_files
from loraens.tasks import STS, Task
from loraens.train.module import Population

RANK = 3
SCALE = 2.5
STEPS = 20


def peft_model(directory):
    """BERT's sequence classifier with PEFT's LoRA, no dropout."""
    stock = BertForSequenceClassification.from_pretrained(
        directory, num_labels=1, attn_implementation="eager"
    )
    for part in stock.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=SCALE * RANK,
        target_modules=["query", "value"],
        lora_dropout=0.0,
    )
    return peft.get_peft_model(stock, config).double()


def pairs_of(model, other):
    """Pairs of our member's and PEFT's parameters."""
    pairs = []
    state = dict(other.named_parameters())
    for name, layer in model.adapters.items():
        for part in ("A", "B"):
            pairs.append(
                (
                    getattr(layer, f"lora_{part}"),
                    state[f"base_model.model.bert.{name}.lora_{part}.default.weight"],
                )
            )
    for part in ("weight", "bias"):
        pairs.append(
            (
                getattr(model.heads["sts"], part),
                state[f"base_model.model.classifier.modules_to_save.default.{part}"],
            )
        )
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_training_equals_peft_in_a_plain_loop(tiny_bert, corpus, ratio):
    """`Trainer.fit` in float64, dropout off, 20 steps, against PEFT and its optimiser of LoRA+ on
    padded batches with the same start and order.
    """
    texts = data.STS(root=str(corpus), backbone=str(tiny_bert), batch_size=4)
    own = {"lr": 1e-2, "weight_decay": 0.05, "loraplus_lr_ratio": ratio}
    member = Member(RANK, SCALE, seed=4, head_dropout=0.0, **own)
    module = Population([member], texts.tasks, backbone=str(tiny_bert), encoder_dropout=False)
    module.build(texts.max_length)
    other = peft_model(tiny_bert).train()
    pairs = pairs_of(module.model, other)
    for ours, theirs in pairs:
        theirs.data.copy_(ours.data[0])
    start = [theirs.detach().clone() for _, theirs in pairs]
    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(
        max_steps=STEPS, max_epochs=-1, precision="64-true", num_sanity_val_steps=0, **options
    ).fit(module, texts)

    part = texts.splits["sts", "train"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rates = {"loraplus_lr_ratio": ratio, "loraplus_weight_decay": member.weight_decay}
    optimizer = create_loraplus_optimizer(other, torch.optim.AdamW, lr=member.lr, **rates)
    (bias,) = optimizer.param_groups[3]["params"]  # of the head, which is no B
    assert bias.shape == (1,)
    optimizer.param_groups[3].update(lr=member.lr, weight_decay=member.weight_decay)
    sampler = TrainSampler([len(part)], 4, [member.seed])
    batches = [
        rows[0] for epoch in range(2) for _, rows in (sampler.set_epoch(epoch), list(sampler))[1]
    ][:STEPS]
    assert len(batches) == STEPS
    for rows in batches:
        first, second = zip(*[part.split.texts[row] for row in rows], strict=True)
        padded = tokenizer(list(first), list(second), padding=True, return_tensors="pt")
        optimizer.zero_grad()
        F.mse_loss(
            other(**padded).logits[:, 0], torch.from_numpy(part.split.labels[rows])
        ).backward()
        optimizer.step()
    for before, (ours, theirs) in zip(start, pairs, strict=True):
        assert (theirs - before).abs().max() > 1e-6  # it did train
        torch.testing.assert_close(ours[0].detach(), theirs.detach(), rtol=0, atol=1e-10)


def trained_like(tiny_bert, members, **options):
    """A model whose adapters and heads are random, as after training."""
    encoder = load_encoder(str(tiny_bert), pooler=options.get("pooling") == "pooler")
    model = MemberModel(encoder, [STS], members, **options).eval()
    torch.manual_seed(3)
    for index, member in enumerate(members):
        for layer in model.adapters.values():
            layer.lora_B.data[index, :, : member.rank].normal_()
        model.heads["sts"].bias.data[index].normal_()
    return model


TEXTS = [
    ("a man carried a boat", "a guy hauled a boat"),
    ("a dog", "two kids painted a wall near the river today"),
]


def packed(tiny_bert, members):
    tokens = tokenise(TEXTS, load_tokenizer(str(tiny_bert)), 64)
    return pack(
        tokens.ids, tokens.types, tokens.offsets, np.array([[0, 1]] * members), None, "sts", "dev"
    )


def write_files(directory, files):
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("index", [0, 1])
def test_peft_loads_a_pooler_member_with_the_same_logits(tiny_bert, tmp_path, index):
    members = [Member(2, 4.0), Member(5, 0.5)]
    model = trained_like(tiny_bert, members, pooling="pooler")
    write_files(tmp_path, member_files(model, index, str(tiny_bert), ("query", "value")))
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    stock = BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=1)
    inputs = AutoTokenizer.from_pretrained(tiny_bert)(
        *map(list, zip(*TEXTS, strict=True)), padding=True, return_tensors="pt"
    )
    plain = stock.base_model(**inputs).pooler_output
    loaded = peft.PeftModel.from_pretrained(stock, tmp_path).eval()
    got = loaded(**inputs).logits
    ours = model(packed(tiny_bert, 2))[index]
    torch.testing.assert_close(got, ours, rtol=0, atol=2e-5)
    assert not torch.allclose(
        plain, model.pooled(packed(tiny_bert, 2))[index], atol=1e-2
    )  # the adapter does something


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_peft_loads_other_members_with_the_same_hidden_states(tiny_bert, tmp_path, pooling):
    model = trained_like(tiny_bert, [Member(3, 2.0)], pooling=pooling)
    write_files(tmp_path, member_files(model, 0, str(tiny_bert), ("query", "value")))
    loaded = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), tmp_path).eval()
    inputs = AutoTokenizer.from_pretrained(tiny_bert)(
        *map(list, zip(*TEXTS, strict=True)), padding=True, return_tensors="pt"
    )
    hidden = loaded(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(model.pooled(packed(tiny_bert, 1))[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "options", [{"pooling": "pooler"}, {"pooling": "mean"}, {"mode": "frozen"}, {"mode": "full"}]
)
def test_files_come_back(tiny_bert, tmp_path, options):
    members = [Member(3, 2.0)]
    options = {"pooling": "cls", **options}
    model = trained_like(tiny_bert, members, **options)
    if options.get("mode") == "full":
        for parameter in model.encoder.parameters():
            parameter.data += 0.01
    write_files(tmp_path, member_files(model, 0, str(tiny_bert), ("query", "value")))
    encoder = load_encoder(str(tiny_bert), pooler=options["pooling"] == "pooler")
    again = MemberModel(encoder, [STS], members, **options).eval()
    batch = packed(tiny_bert, 1)
    assert not torch.equal(again(batch), model(batch))
    load_member(again, 0, tmp_path)
    assert torch.equal(again(batch), model(batch))


TWO = Task("two", ("text",), "label", "classes", "cross_entropy", "accuracy", ("no", "yes"))


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("name", ["bert", "albert"])
def test_an_auto_class_loads_a_classifier(name, kind, tmp_path, caplog):
    """Without further arguments where it has two classes, of which PEFT knows else nothing."""
    write_stock(name, bracketing_tokenizer(["dog", "man"]), tmp_path / "model")
    members = [Member(2, 4.0), Member(3, 0.5)]
    for task, more in ((TWO, {}), (STS, {"num_labels": 1})):
        encoder = load_encoder(str(tmp_path / "model"), pooler=True)
        model = MemberModel(encoder, [task], members, adapter=kind).eval()
        for layer in model.adapters.values():
            layer.lora_B.data[1, :, :3].normal_()
        files = member_files(model, 1, str(tmp_path / "model"), ("query", "value"))
        write_files(tmp_path / task.name, files)
        loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(
            tmp_path / task.name, **more
        ).eval()
        adapted = {n for n, m in loaded.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
        assert adapted == {f"base_model.model.{name}.{layer}" for layer in model.adapters}
        ids = np.array([2, 5, 6, 6, 3])
        one = pack(ids, ids * 0, np.array([0, 5]), np.zeros((2, 1), int), None, task.name, "dev")
        got = loaded(torch.from_numpy(ids)[None]).logits
        torch.testing.assert_close(got, model(one)[1], rtol=0, atol=2e-5)
    assert not [record for record in caplog.records if record.name.startswith("peft")]
