"""Every formula in a docstring, with numbers; what is weighted, logged and kept from the gradient."""

from __future__ import annotations

import math

import pytest
import torch

from opir_lightning.errors import UserError
from opir_lightning.losses import RestorationLoss, frequency, log_mse, rmse, uncertainty_nll
from opir_lightning.types import Restoration

B, H, W = 2, 8, 8


def restoration(coarse_error: float, refined_error: float, uncertainty: float = 0.1) -> Restoration:
    base = torch.full((B, 3, H, W), 0.5)
    return Restoration(
        coarse=(base + coarse_error).requires_grad_(),
        uncertainty=torch.full((B, 1, H, W), uncertainty).requires_grad_(),
        refined=(base + refined_error).requires_grad_(),
        task_logits=torch.tensor([[2.0, 0.0], [2.0, 0.0]]),
    )


CLEAN = torch.full((B, 3, H, W), 0.5)
TASK = torch.tensor([0, 0])


def test_total_is_the_weighted_sum_with_the_coarse_factor():
    loss = RestorationLoss(l1=2.0, coarse=0.5)(restoration(0.2, 0.1), CLEAN, TASK)
    assert loss.total.item() == pytest.approx(2 * 0.1 + 0.5 * 2 * 0.2, rel=1e-5)
    assert {name: round(v.item(), 5) for name, v in loss.terms.items()} == {"refined/l1": 0.1, "coarse/l1": 0.2}


def test_a_weight_of_zero_is_neither_computed_nor_logged():
    terms = RestorationLoss(rmse=1.0, coarse=0.0)(restoration(0.2, 0.1), CLEAN, TASK).terms
    assert set(terms) == {"refined/rmse"}


def test_one_stage_counts_once():
    one = restoration(0.1, 0.1)
    one = one._replace(refined=one.coarse)
    assert RestorationLoss(l1=1.0)(one, CLEAN, TASK).total.item() == pytest.approx(0.1, rel=1e-5)


def test_picture_terms_have_their_values():
    off = CLEAN + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    assert rmse(off, CLEAN).tolist() == pytest.approx([0.1, 0.3], rel=1e-3)
    assert log_mse(off, CLEAN).tolist() == pytest.approx([math.log(0.0101), math.log(0.0901)], rel=1e-5)
    wave = torch.zeros(1, 1, 8, 8)
    wave[..., ::2] = 1  # mean 1/2 and the highest frequency 1/2: two coefficients of 0.5 * sqrt(64) = 4 among 8 x 5 x 2
    assert frequency(wave, torch.zeros_like(wave)).item() == pytest.approx(2 * 4 / (8 * 5 * 2), rel=1e-5)


def test_log_mse_stops_pulling_at_forty_decibels():
    nearly = (CLEAN + 1e-3).requires_grad_()
    log_mse(nearly, CLEAN).sum().backward()
    damaged = (CLEAN + 3e-2).requires_grad_()
    log_mse(damaged, CLEAN).sum().backward()
    assert nearly.grad.abs().max() < damaged.grad.abs().max()


def test_uncertainty_is_smallest_where_it_equals_the_error():
    def at(value: float, beta: float) -> float:
        r = restoration(0.2, 0.0, uncertainty=value)
        nll = uncertainty_nll(r.coarse, r.uncertainty, CLEAN, beta)
        nll.backward()
        return r.uncertainty.grad.sum().item()

    for beta in (0.0, 0.5, 1.0):
        assert at(0.2, beta) == pytest.approx(0, abs=1e-5)
        assert at(0.1, beta) < 0 < at(0.4, beta)
    value = uncertainty_nll(CLEAN + 0.2, torch.full((B, 1, H, W), 0.4), CLEAN, 0.0)
    assert value.item() == pytest.approx(0.5 + math.log(0.4), rel=1e-5)


def test_declaring_a_pixel_uncertain_buys_no_smaller_pull_on_the_picture():
    def pull(value: float, beta: float) -> float:
        r = restoration(0.2, 0.0, uncertainty=value)
        uncertainty_nll(r.coarse, r.uncertainty, CLEAN, beta).backward()
        return r.coarse.grad.abs().sum().item()

    assert pull(0.4, 1.0) == pytest.approx(pull(0.05, 1.0), rel=1e-5)
    assert pull(0.4, 0.0) < pull(0.05, 0.0) / 4


def test_task_term_is_the_cross_entropy():
    loss = RestorationLoss(l1=1.0, task=1.0)(restoration(0.0, 0.0), CLEAN, torch.tensor([0, 1]))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert loss.terms["task"].item() == pytest.approx(expected, rel=1e-5)


def test_task_weights_are_factors_of_the_pictures_of_a_task_and_are_not_logged():
    r = restoration(0.0, 0.0)._replace(refined=CLEAN + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1))
    loss = RestorationLoss(l1=1.0, coarse=0.0, tasks=["none", "noise"], task_weights={"noise": 3.0})
    terms = loss(r, CLEAN, torch.tensor([0, 1]))
    assert terms.total.item() == pytest.approx((0.1 + 3 * 0.3) / 2, rel=1e-5)
    assert terms.terms["refined/l1"].item() == pytest.approx(0.2, rel=1e-5)


def test_a_weight_for_a_task_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match="'nois', and the tasks are none, noise"):
        RestorationLoss(l1=1.0, tasks=["none", "noise"], task_weights={"nois": 3.0})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"l1": -1.0}, r"loss\.l1 is -1; it is a weight and must be 0 or more"),
        ({"l1": 1.0, "coarse": -0.5}, r"loss\.coarse is -0\.5"),
        ({"l1": 1.0, "task": math.inf}, r"loss\.task is inf"),
        ({"l1": 1.0, "beta": 2.0}, r"loss\.beta is 2; it must be in \[0, 1\]"),
        ({"l1": 1.0, "tasks": ["rain"], "task_weights": {"rain": -1}}, r"loss\.task_weights\.rain is -1"),
        ({}, "All weights of `loss` are 0"),
    ],
)
def test_weights_out_of_their_range_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        RestorationLoss(**wrong)
