"""Predictions of an ensemble without running all its members on all texts: members run one after
another, in the order of their weight, each merged with the backbone, and a text leaves as soon as
those that are left cannot change its class.

Of a vote the leading class is decided once its votes are ahead of every other class's by more than
the weight that is left; of mean probabilities likewise, since a member can add at most its weight
to a class, and at least 0. Ties, and leads within rounding, are not decided before the end; texts
that all members ran on are combined as ever. So the predictions are those of all members.

Shape letters: M members, N texts, C outputs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from loraens.inference.combination import Combination
from loraens.members import Member
from loraens.metrics import TINY
from loraens.model.injection import merge
from loraens.model.population import MemberModel
from loraens.tasks import Task

if TYPE_CHECKING:
    from loraens.inference.cascade import Cascade
    from loraens.inference.predictor import Predictor

MARGIN = 1e-6  # of a lead: more than sums of float64 are rounded by, and vote's ties are wide
RULES = ("vote", "probs")


def stops_early(task: Task, combination: Combination) -> bool:
    """Whether a class can be certain before all members ran."""
    several = len(combination.weights) > 1
    return several and combination.rule in RULES and task.label_kind.most_probable


def can_cascade(task: Task, combination: Combination) -> bool:
    """Whether members can run one after another until a class is nearly certain."""
    return len(combination.weights) > 1 and task.label_kind.most_probable


@dataclass
class Stopped:
    """What `run_in_turn` found.

    Args:
        predictions: `(N,)` class numbers.
        ran: `(N,)` members that ran on each text.
    """

    predictions: np.ndarray
    ran: np.ndarray


def run_in_turn(
    logits_of: Callable[[int, np.ndarray], np.ndarray],
    texts: int,
    task: Task,
    combination: Combination,
    combine: Callable[[np.ndarray], np.ndarray],
    threshold: float = 1.0,
) -> Stopped:
    """Run members until the class of each text is certain, or nearly so.

    Args:
        logits_of: Logits `(n, C)` of a member, given its number and the indices `(n,)` of texts.
        texts: N.
        task: A task of which `stops_early` is true, or, with a threshold, `can_cascade`.
        combination: How the members are combined.
        combine: Class numbers `(n,)` of the logits `(M, n, C)` of all members.
        threshold: A class is taken once its lead is more than that times the weight of the members
            that are left; from 1 on votes and probabilities then are certain.
    """
    shares = combination.weights / combination.weights.sum()
    order = np.argsort(-shares, kind="stable")
    left = np.append(np.cumsum(shares[order][::-1])[::-1][1:], 0)  # behind each member
    classes = len(task.class_names)
    sums = np.zeros((texts, classes))
    logits = np.zeros((len(shares), texts, task.num_outputs))
    predictions = np.zeros(texts, np.int64)
    ran = np.zeros(texts, np.int64)
    there = np.arange(texts)
    for member, remaining in zip(order, left, strict=True):
        logits[member, there] = logits_of(int(member), there)
        ran[there] += 1
        outcome = task.outcome(logits[member, there])
        assert outcome.probabilities is not None
        if combination.rule == "vote":
            sums[there, outcome.predictions] += shares[member]
        elif combination.rule == "probs":
            sums[there] += shares[member] * outcome.probabilities
        else:  # of which the largest sum is that of the largest mean logit
            sums[there] += shares[member] * np.log(np.maximum(outcome.probabilities, TINY))
        second, first = np.partition(sums[there], classes - 2, axis=1)[:, -2:].T
        certain = first - second > threshold * remaining + MARGIN
        predictions[there[certain]] = sums[there[certain]].argmax(axis=1)
        there = there[~certain]
        if not len(there):
            break
    if len(there):
        predictions[there] = combine(logits[:, there])
    return Stopped(predictions, ran)


class InTurn:
    """A model of several LoRA members, of which one at a time is merged with the backbone.

    Args:
        model: The model, which becomes one of one member.
        cascade: When a text leaves; where its class is certain, by default.

    Attributes:
        texts: Texts that were predicted so far.
        ran: Members that ran on them, in sum.
    """

    def __init__(self, model: MemberModel, cascade: Cascade | None = None) -> None:
        self.model = model
        self.cascade = cascade
        self.members: tuple[Member, ...] = model.members
        self.adapters = model.adapters
        self.heads = {
            name: (head.weight.detach(), head.bias.detach()) for name, head in model.heads.items()
        }
        merge(model.encoder, 0)
        model.become_one()
        self.now: int | None = None
        self.texts = 0
        self.ran = 0  # members on texts

    @torch.no_grad()
    def choose(self, index: int) -> None:
        """Have the model be a member."""
        if index == self.now:
            return
        for name, adapter in self.adapters.items():
            merged = adapter.merged(index)
            self.model.encoder.get_submodule(name).load_state_dict(merged.state_dict())
        for name, (weight, bias) in self.heads.items():
            head = self.model.heads[name]
            head.weight = nn.Parameter(weight[index : index + 1], requires_grad=False)
            head.bias = nn.Parameter(bias[index : index + 1], requires_grad=False)
        self.model.members = self.members[index : index + 1]
        self.now = index

    def predictions(
        self, predictor: Predictor, texts: Sequence[tuple[str, ...]], task: Task
    ) -> np.ndarray:
        """Class numbers `(N,)` of texts; how many members ran is added up."""
        combination = predictor.combined(task)

        def logits_of(member: int, indices: np.ndarray) -> np.ndarray:
            self.choose(member)
            own: np.ndarray = predictor.logits([texts[index] for index in indices], task)[0]
            return own

        def combine(logits: np.ndarray) -> np.ndarray:
            classes: np.ndarray = combination.outcome(predictor.pool(logits, task)).predictions
            return classes

        threshold = 1.0 if self.cascade is None else self.cascade.threshold
        found = run_in_turn(logits_of, len(texts), task, combination, combine, threshold)
        self.texts += len(texts)
        self.ran += int(found.ran.sum())
        predictions: np.ndarray = found.predictions
        return predictions

    @property
    def sentence(self) -> str:
        """How many members ran, and what the classes are."""
        reason = "for the others its class was certain"
        if self.cascade is not None:
            reason = self.cascade.sentence
        average = self.ran / self.texts
        return f"{average:.1f} of {len(self.members)} members ran on a text, on average: {reason}"
