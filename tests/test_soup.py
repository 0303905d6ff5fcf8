"""Model soups are the model that their members' mean weights make."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.corpus import texts_of
from peft import PeftModel
from transformers import AutoModel

from loraens.ensemble.cross_validation import Candidate
from loraens.ensemble.methods import METHODS, names
from loraens.ensemble.options import Options
from loraens.ensemble.prove import prove
from loraens.ensemble.read import read_runs
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.inference.soup import Soup
from loraens.metrics import Outcome
from loraens.model.lora import LoRALinear
from loraens.model.routing import Routing
from loraens.store import MemberStore, find_members
from loraens.tasks import SST, STS


def plain_soup(sweep, names, weights):
    """The model that the weights make, by hand: base plus the sum of w c B A, and the mean of the
    heads.
    """
    parts = [Predictor.load(sweep / name) for name in names]
    heads = [next(iter(part.model.heads.values())) for part in parts]
    base = dict(parts[0].model.encoder.named_parameters())
    for name, parameter in base.items():
        parameter.data = sum(
            w * dict(part.model.encoder.named_parameters())[name].data
            for w, part in zip(weights, parts, strict=True)
        )
    for attribute in ("weight", "bias"):
        getattr(heads[0], attribute).data = sum(
            w * getattr(head, attribute).data for w, head in zip(weights, heads, strict=True)
        )
    return parts[0]


@pytest.fixture(scope="module")
def soups(trained, run_command):
    """The sweep's task and directory, with both soups made of it."""
    assert (
        run_command("ensemble", "--runs", trained[1], "--method", "soup", "--logger", "false") == 0
    )
    return trained


@pytest.mark.slow
def test_a_soup_is_the_model_of_mean_weights(soups, corpus):
    name, sweep = soups
    _, texts = texts_of(corpus, name)
    for method in names(merges=True):
        folder = sweep / "ensembles" / f"{name}-{method}-merged"
        record = json.loads((folder / "ensemble.json").read_text())
        members = {member["name"]: member["weight"] for member in record["members"]}
        expected = plain_soup(sweep, list(members), list(members.values()))
        predictor = Predictor.load(folder)
        task = predictor.task()
        np.testing.assert_allclose(
            predictor.logits(texts, task), expected.logits(texts, task), atol=1e-5
        )
        assert predictor.combination is None
        assert len(predictor.model.adapters) == 0  # folded: it costs what one member costs
        stored = MemberStore(folder).logits(name, "dev")
        outcome = read_runs([folder])[name].dev.outcome(0)
        assert task.score(outcome, stored.labels) == pytest.approx(record["dev"][task.metric])
        assert (
            record["interval"]["low"] <= record["interval"]["value"] <= record["interval"]["high"]
        )
    uniform = json.loads(
        (sweep / "ensembles" / f"{name}-soup-merged" / "ensemble.json").read_text()
    )
    assert len(uniform["members"]) == 4
    assert uniform["interval"]["value"] == pytest.approx(
        uniform["dev"][task.metric]
    )  # nothing was chosen on dev


def test_a_soup_predicts_and_is_an_adapter_for_peft(
    soups, corpus, tiny_bert, run_command, tmp_path
):
    name, sweep = soups
    folder = sweep / "ensembles" / f"{name}-soup-merged"
    out = tmp_path / "out.csv"
    source = corpus / f"{'ids-sst' if name == 'sst' else name}-test-student.csv"
    assert (
        run_command(
            "predict", "--model", folder, "--input", source, "--format", "tsv", "--output", out
        )
        == 0
    )
    with out.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(texts_of(corpus, name)[0])
    ours = Predictor.load(folder).model.encoder.state_dict()
    theirs = PeftModel.from_pretrained(
        AutoModel.from_pretrained(tiny_bert), folder / "epoch-001"
    ).merge_and_unload()
    for key, value in theirs.state_dict().items():
        if not key.startswith("pooler."):
            torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=1e-5)


def test_more_columns_than_rows_are_cut_without_loss():
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(7, 6).double(), [4, 2, 3], [0.5, 2.0, 1.0], Routing())
    with torch.no_grad():
        for index, rank in enumerate(layer.ranks):
            layer.lora_A[index, :rank].normal_()
            layer.lora_B[index, :, :rank].normal_()
    for weights in ([0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]):
        up, down = layer.combined(weights)
        expected = sum(w * layer.delta_weight(index) for index, w in enumerate(weights))
        torch.testing.assert_close(up @ down, expected)
        assert up.shape[1] == min(
            6, sum(rank for rank, w in zip(layer.ranks, weights, strict=True) if w)
        )


@pytest.mark.parametrize("task", [SST, STS], ids=lambda task: task.name)
def test_greedy_soup_against_a_plain_loop(task, make_pool):
    pool = make_pool(task, 6, 80)
    pool = replace(
        pool, merged=lambda weights: np.tensordot(weights, np.sign(pool.logits) + pool.logits, 1)
    )
    chosen = []
    reached = -np.inf
    for member in pool.order[:4]:
        weights = np.zeros(6)
        weights[[*chosen, member]] = 1 / (len(chosen) + 1)
        logits = pool.merged(weights)
        outcome = Outcome(logits[:, 0] if task is STS else logits.argmax(1))
        found = task.score(outcome, pool.labels)
        if found >= reached:
            chosen = [*chosen, member]
            reached = found
    weights = METHODS["greedy_soup"].select(pool, Options(tried=4), np.random.default_rng(0))
    assert sorted(np.flatnonzero(weights)) == sorted(chosen)
    np.testing.assert_allclose(weights[weights > 0], 1 / len(chosen))


def test_held_out_scores_are_of_soups_that_did_not_see_the_fold(make_pool):
    """Members of noise, merged by a rule that rewards what was chosen on: dev rises, held out does
    not.
    """
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 5, 150)
    pool = replace(
        make_pool(STS, 30, 150),
        labels=labels,
        logits=rng.normal(0, 1, (30, 150, 1)).astype(np.float32),
    )
    pool = replace(pool, merged=lambda weights: np.tensordot(weights, pool.logits, 1))
    wanted = [Candidate("best", "logits", Options()), Candidate("omni", "logits", Options())]
    proofs = prove(pool, [*wanted, Candidate("greedy_soup", "merged", Options())])
    assert proofs[2].dev["pearson"] > 0.15
    assert proofs[2].interval.value < 0.1
    assert proofs[2].to_best.low < 0 < proofs[2].to_best.high


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        pytest.param(
            "limit: 5", "names other data than the members were trained on", id="other-data"
        ),
        pytest.param(None, "it says where the members' texts are", id="no-config"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(soups, fails, limit, message):
    _, sweep = soups
    config = sweep / "config.yaml"
    text = config.read_text()
    try:
        if limit is None:
            config.unlink()
        else:
            config.write_text(text.replace("limit: null", limit))
        assert message in fails("ensemble", "--runs", sweep, "--method", "soup")
    finally:
        config.write_text(text)


def test_only_lora_members_are_merged(soups):
    name, sweep = soups
    found = read_runs([sweep])[name]
    first = found.manifests[0]
    found.manifests[0] = replace(first, settings=replace(first.settings, mode="full"))
    with pytest.raises(InputError, match=r"^method soup merges LoRA members") as error:
        Soup(found)
    assert error.value.in_command().startswith("--method soup merges")
    assert len(find_members(sweep)) == 4  # soups are no members of the sweep


def test_what_is_compared_is_of_the_same_folds(make_pool):
    """A greedy soup of one member is the best member: the difference is nought, though the best one
    has more repetitions.
    """
    pool = make_pool(SST, 5, 90)
    pool = replace(pool, merged=lambda weights: np.tensordot(weights, pool.logits, 1))
    wanted = [Candidate("best", "vote", Options()), Candidate("omni", "vote", Options())]
    proof = prove(pool, [*wanted, Candidate("greedy_soup", "merged", Options(tried=1))])[2]
    to_best = proof.to_best
    assert (to_best.value, to_best.low, to_best.high, proof.p_best) == (0, 0, 0, 1)
