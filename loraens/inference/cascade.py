"""When members may stop running on a text although those that are left could still change its
class, and in how many texts the class then is that of all members.

Members run in the order of their weight, as in `early_stop`, and a text leaves once the lead of its
class, the sum over the members that ran of weight times vote, probability or log probability, is
more than a threshold times the weight of the members that are left. At a threshold of 1 votes and
probabilities cannot change any more; below it they hardly ever do.

The threshold is chosen on texts that no member was trained on. That needs no labels: a text gets
the class of all members or not. If the texts are drawn as new ones are, Clopper and Pearson's
(1934) lower bound of the share of agreeing ones, at confidence 0.95, holds for one threshold. It
holds for the chosen one, too, as they are tried in an order that is fixed beforehand, from the
highest down, until one has a bound below the level: fixed sequence testing (Bauer 1991; for such
thresholds Angelopoulos et al. 2021, "Learn then test").

Shape letters: M members, N texts, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loraens.errors import InputError
from loraens.inference.combination import Combination
from loraens.inference.early_stop import RULES, run_in_turn
from loraens.tasks import Task

CONFIDENCE = 0.95
STEPS = 100
# of the lead in log probabilities, in nats, which has no bound
HIGHEST = {"vote": 1.0, "probs": 1.0, "logits": 10.0}


@dataclass(frozen=True)
class Cascade:
    """The threshold of a cascade, and what was proved of it.

    Args:
        threshold: Of the lead, in units of the weight that is left.
        agreeing: Held-out texts whose class is that of all members.
        texts: All of them.
        ran: Members that ran on one of them, on average.
        bound: Lower bound of the share of new texts whose class is that of all members; 1 where no
            member that is left could change it.
    """

    threshold: float
    agreeing: int
    texts: int
    ran: float
    bound: float

    @property
    def sentence(self) -> str:
        """What was proved."""
        if self.bound == 1:
            return "the classes are those of all members"
        return (
            f"the class is that of all members in at least {self.bound:.2%} of new texts"
            f" ({CONFIDENCE:.0%} confidence; in {self.agreeing} of {self.texts} held-out ones)"
        )


def check_level(level: float) -> None:
    """Refuse a level that is no share of texts.

    Raises:
        InputError: It names the option.
    """
    if not 0 < level < 1:
        raise InputError(
            f"cascade {level:g}: a share between 0 and 1 is expected, such as 0.99",
            option="cascade",
        )


def chosen_cascade(
    task: Task, combination: Combination, logits: np.ndarray, level: float
) -> Cascade:
    """The cascade of the lowest threshold, of a fixed sequence, whose bound is not below a level.

    Args:
        task: A task whose prediction is its most probable class.
        combination: How the members are combined.
        logits: `(M, N, C)` of texts that no member was trained on.
        level: Share of new texts whose class is to be that of all members.

    Raises:
        InputError: The texts are too few, or agree too rarely.
    """
    whole = combination.outcome(combination.pool(task, logits)).predictions
    texts = len(whole)
    chosen = None
    exact = combination.rule in RULES
    for threshold in np.linspace(HIGHEST[combination.rule], 0, STEPS + 1).tolist():
        found = run_in_turn(
            logits_of=lambda member, indices: logits[member, indices],
            texts=texts,
            task=task,
            combination=combination,
            combine=lambda some: combination.outcome(combination.pool(task, some)).predictions,
            threshold=threshold,
        )
        agreeing = int((found.predictions == whole).sum())
        bound = 1.0 if exact and threshold == 1 else lower_bound(agreeing, texts)
        if bound < level:
            break
        chosen = Cascade(threshold, agreeing, texts, float(found.ran.mean()), bound)
    if chosen is None:
        needed = int(np.ceil(np.log(1 - CONFIDENCE) / np.log(level)))
        raise InputError(
            f"cascade {level:g}: the {texts} held-out texts prove no more than {bound:.3f}, and at"
            f" least {needed} are needed if all agree: ask for less",
            option="cascade",
        )
    return chosen


def lower_bound(agreeing: int, texts: int) -> float:
    """Clopper and Pearson's lower bound of a share, one-sided at the confidence.

    Examples:
        All of 299 agree, by hand 0.05 ** (1 / 299):

        >>> round(lower_bound(299, 299), 5)
        0.99003
    """
    from scipy.stats import beta

    if agreeing == 0:
        return 0.0
    return float(beta.ppf(1 - CONFIDENCE, agreeing, texts - agreeing + 1))
