"""The members' AdamW against torch's own, one optimiser a member."""

import pytest
import torch

from loraens.train.optimizer import MemberAdamW, gradient_norms, scale_gradients

RATES = [1e-2, 3e-3, 1e-4]
DECAYS = [0.0, 0.1, 0.01]
RATIOS = [16.0, 1.0, 4.0]


def parameters():
    torch.manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(3, *shape, dtype=torch.float64))
        for shape in ((4, 5), (6,), (1,))
    ]


def test_against_torch():
    ours = parameters()
    optimizer = MemberAdamW(ours, RATES, DECAYS, RATIOS, faster=ours[:1])
    alone = [[torch.nn.Parameter(p.detach()[index].clone()) for p in ours] for index in range(3)]
    others = [
        torch.optim.AdamW(
            [{"params": first, "lr": lr * ratio}, {"params": rest, "lr": lr}], weight_decay=decay
        )
        for (first, *rest), lr, ratio, decay in zip(alone, RATES, RATIOS, DECAYS, strict=True)
    ]
    for step in range(20):
        optimizer.param_groups[0]["lr"] = factor = 1 - step / 40
        for place, parameter in enumerate(ours):
            parameter.grad = (
                None if place == 1 and step % 3 == 0 else torch.randn_like(parameter)
            )  # as heads of other tasks
            for index in range(3):
                alone[index][place].grad = (
                    None if parameter.grad is None else parameter.grad[index].clone()
                )
        optimizer.step()
        for other, rate, ratio in zip(others, RATES, RATIOS, strict=True):
            other.param_groups[0]["lr"] = rate * ratio * factor
            other.param_groups[1]["lr"] = rate * factor
            other.step()
    for place, parameter in enumerate(ours):
        for index in range(3):
            torch.testing.assert_close(parameter[index], alone[index][place], rtol=0, atol=1e-13)


def test_state_goes_on():
    states = []
    for pause in (False, True):
        ours = parameters()
        optimizer = MemberAdamW(ours, RATES, DECAYS)
        for step in range(4):
            if pause and step == 2:
                saved = optimizer.state_dict()
                optimizer = MemberAdamW(ours, RATES, DECAYS)
                optimizer.load_state_dict(saved)
            for parameter in ours:
                parameter.grad = torch.full_like(parameter, step + 1.0)
            optimizer.step()
        states.append(ours)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_dead_member_stays_and_disturbs_nobody():
    results = []
    for bad in (False, True):
        ours = parameters()
        optimizer = MemberAdamW(ours, RATES, DECAYS)
        for step in range(5):
            torch.manual_seed(step)
            for parameter in ours:
                parameter.grad = torch.randn_like(parameter)
                if bad and step >= 2:
                    parameter.grad[1] = float("nan")
            before = [p.detach().clone() for p in ours]
            active = gradient_norms(ours, 3).isfinite()
            assert active.tolist() == [True, not (bad and step >= 2), True]
            scale_gradients(ours, torch.ones(3), active)
            optimizer.active = active
            optimizer.step()
            if bad and step >= 2:
                assert all(torch.equal(p[1], b[1]) for p, b in zip(ours, before, strict=True))
        results.append(ours)
    for good, other in zip(*results, strict=True):
        assert torch.equal(good[[0, 2]], other[[0, 2]])


def test_norms_and_scaling():
    ours = parameters()
    for parameter in ours:
        parameter.grad = torch.randn_like(parameter)
    norms = gradient_norms(ours, 3)
    for index in range(3):
        expected = torch.cat([p.grad[index].flatten() for p in ours]).norm()
        assert norms[index].item() == pytest.approx(expected.item(), abs=1e-12)
    scale_gradients(ours, 0.5 / norms, torch.tensor([True, True, False]))
    assert gradient_norms(ours, 3).tolist() == pytest.approx([0.5, 0.5, 0])
