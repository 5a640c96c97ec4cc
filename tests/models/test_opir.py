"""The network: what it must do by construction, and that every switch switches."""

from __future__ import annotations

import pytest
import torch

from opir_lightning.errors import UserError
from opir_lightning.models import OPIR
from opir_lightning.models.degradation_code import CodeEstimator, Standardise, native_crops
from opir_lightning.models.image_statistics import image_statistics

TASKS = ["none", "noise", "rain"]
SMALL = {
    "tasks": TASKS,
    "width": 8,
    "encoder_blocks": [1, 1],
    "middle_blocks": 1,
    "decoder_blocks": [1, 1],
    "features": 8,
    "code_crop": 32,
}


def make(**settings) -> OPIR:
    torch.manual_seed(0)
    return OPIR(**{**SMALL, **settings}).eval()


def trained_looking(net: OPIR) -> OPIR:
    """Move every parameter away from its special start, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return net


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_both_stages_start_at_the_identity_operator():
    net = make()
    image = picture(21, 34)
    restored = net(image)
    torch.testing.assert_close(restored.coarse, image)
    torch.testing.assert_close(restored.refined, image)


def test_second_stage_starts_at_the_identity_operator_whatever_is_predicted():
    net = make()
    torch.nn.init.normal_(net.stages[0].projection.weight, std=0.02)
    restored = net(picture(24, 24))
    torch.testing.assert_close(restored.refined, restored.coarse)
    assert not torch.allclose(restored.coarse, picture(24, 24), atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 5), (33, 50)])
def test_any_size_comes_back_in_its_size(size):
    restored = trained_looking(make())(picture(*size))
    assert restored.refined.shape == (1, 3, *size)
    assert restored.uncertainty.shape == (1, 1, *size)
    assert all(torch.isfinite(part).all() for part in restored)


def test_uncertainty_is_strictly_positive_even_where_the_net_says_none():
    net = make()
    torch.nn.init.constant_(net.uncertainty_head.project.bias, -200.0)
    assert net(picture(16, 16)).uncertainty.min() > 0


def test_a_pixel_beyond_the_receptive_field_changes_nothing():
    net = trained_looking(make())
    near = picture(8, 2 * net.receptive_field + 24)
    code = net.estimate_code(near)
    far = near.clone()
    far[..., 0] = 1 - far[..., 0]
    seen = (net(near, code=code).refined - net(far, code=code).refined).abs().amax((0, 1, 2))
    assert seen[: net.receptive_field // 4].max() > 0
    assert seen[net.receptive_field + 1 :].max() < 1e-6


def test_task_parameters_enter_after_the_prediction_only():
    """With task parameters after the prediction, the predictor never sees the code."""
    net = trained_looking(make())
    image, ones = picture(16, 16), torch.ones(1, 1, 16, 16)
    codes = [net.estimate_code(image, torch.tensor([task])) for task in (1, 2)]
    raw = [net.stages[0](image, ones, code)[0] for code in codes]
    torch.testing.assert_close(raw[0], raw[1], rtol=0, atol=0)
    operators = [net.predict_operator(image, ones, code, stage=0).predict() for code in codes]
    assert not torch.allclose(operators[0], operators[1], atol=1e-3)

    before = trained_looking(make(task_parameters="before"))
    raw = [before.stages[0](image, ones, code)[0] for code in codes]
    assert not torch.allclose(raw[0], raw[1], atol=1e-3)
    off = trained_looking(make(task_parameters="off"))
    torch.testing.assert_close(off(image, code=codes[0]).refined, off(image, code=codes[1]).refined)


def test_a_given_label_replaces_the_estimate_and_minus_one_does_not():
    net = trained_looking(make())
    image = torch.cat([picture(32, 32), picture(32, 32, seed=5)])
    code = net.estimate_code(image, torch.tensor([2, -1]))
    torch.testing.assert_close(code.task[0], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(code.task[1], code.task_logits[1].softmax(0))


@pytest.mark.parametrize("size", [(32, 32), (70, 96)])
def test_a_given_label_speaks_in_the_severity_and_not_in_the_names(size):
    net = trained_looking(make(label_aware=True))
    image = torch.cat([picture(*size), picture(*size, seed=5)])
    blind, given = net.estimate_code(image), net.estimate_code(image, torch.tensor([2, -1]))
    assert (given.severity[0] - blind.severity[0]).abs().max() > 1e-3
    assert not torch.allclose(given.severity[0], net.estimate_code(image, torch.tensor([1, -1])).severity[0])
    assert torch.equal(given.task_logits, blind.task_logits)
    torch.testing.assert_close(given.severity[1], blind.severity[1])
    new = make(label_aware=True)  # at its start it does not listen yet
    told = new.estimate_code(image, torch.tensor([2, 1]))
    torch.testing.assert_close(told.severity, new.estimate_code(image).severity)


def test_what_the_crops_of_a_picture_say_adds_up():
    """Four equal quarters are four witnesses that say the same: four times the logits, the severity of one."""
    estimator = CodeEstimator(tasks=3, severity_size=2, crop=32, crops_per_side=4, hidden=96).eval()
    quarter = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, four = estimator(quarter), estimator(quarter.repeat(1, 1, 2, 2))
    torch.testing.assert_close(four.task_logits, 4 * one.task_logits)
    torch.testing.assert_close(four.task, (4 * one.task_logits).softmax(1))
    torch.testing.assert_close(four.severity, one.severity)


def test_one_crop_alone_may_be_heard():
    torch.manual_seed(0)
    estimator = CodeEstimator(tasks=3, severity_size=2, crop=32, crops_per_side=4, hidden=96).eval()
    images = torch.cat([picture(64, 64, seed) for seed in range(4)])
    heard = torch.tensor([-1.0, 0.0, 0.6, 1.0])  # all; the first, the third and the last of four
    code = estimator(images, None, heard)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(code, estimator(images), strict=True))
    corners = {1: images[1:2, :, :32, :32], 2: images[2:3, :, 32:, :32], 3: images[3:4, :, 32:, 32:]}
    for place, crop in corners.items():
        for told, alone in zip(code, estimator.hear(crop, 1), strict=True):
            assert torch.allclose(told[place], alone[0], atol=1e-6)
    everything = estimator.hear(*native_crops(images, 32, 4))
    assert all(torch.equal(a, b) for a, b in zip(estimator(images, None, -torch.ones(4)), everything, strict=True))


def test_code_is_estimated_from_native_crops_that_reach_the_corners():
    image = torch.arange(100 * 130).float().view(1, 1, 100, 130).expand(1, 3, -1, -1)
    crops, count = native_crops(image, 32, 4)
    assert count == 16
    assert crops.shape == (16, 3, 32, 32)
    assert crops[0, 0, 0, 0] == image[0, 0, 0, 0]
    assert crops[-1, 0, -1, -1] == image[0, 0, -1, -1]


def test_statistics_tell_noise_from_texture_free_pictures_and_take_no_gradient():
    smooth = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64).clone().requires_grad_()
    noisy = smooth.detach() + 0.1 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert not image_statistics(smooth).requires_grad
    assert (image_statistics(smooth) - image_statistics(noisy)).abs().max() > 1


def test_gradient_reaches_every_parameter_after_one_step_of_the_second_stage():
    """Stage 2 starts at the identity with a factor of zero: what it hides must appear once the factor has moved."""
    net = trained_looking(make()).train()
    restored = net(torch.rand(4, 3, 32, 32))
    (restored.coarse.square().sum() + restored.refined.square().sum() + restored.uncertainty.sum()).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("detach", [True, False])
def test_detaching_keeps_the_second_stage_out_of_the_first(detach):
    net = trained_looking(make(shared_predictor=False, detach_between_stages=detach, task_parameters="off"))
    net(picture(16, 16)).refined.sum().backward()
    touched = net.stages[0].projection.weight.grad is not None
    assert touched is not detach


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ({"kernel_size": 5}, True),
        ({"dilations": [1]}, True),
        ({"per_colour": False}, True),
        ({"offset": False}, True),
        ({"stages": 1}, True),
        ({"shared_predictor": False}, True),
        ({"task_parameters": "off"}, True),
        ({"task_parameters": "before"}, True),
        ({"uncertainty": "tap_mean"}, True),
        ({"uncertainty": "off"}, True),
        ({"unshuffle": 4}, True),
        ({"padding": "zeros"}, False),
    ],
)
def test_every_switch_runs_and_changes_the_result(switch, changed):
    plain, switched = make(), make(**switch)
    assert switched.settings != plain.settings
    count = [sum(p.numel() for p in net.parameters()) for net in (plain, switched)]
    if changed and "uncertainty" not in switch:
        assert count[0] != count[1] or "shared_predictor" in switch
    out = trained_looking(switched)(picture(18, 20))
    reference = trained_looking(plain)(picture(18, 20))
    assert out.refined.shape == (1, 3, 18, 20)
    assert not torch.allclose(out.refined, reference.refined, atol=1e-4)


def test_uncertainty_off_is_ones_and_one_stage_returns_its_own_result():
    assert (make(uncertainty="off")(picture(8, 8)).uncertainty == 1).all()
    one = make(stages=1)(picture(8, 8))
    assert one.refined is one.coarse


def test_the_second_stage_reads_the_uncertainty_map():
    net = trained_looking(make())
    image = picture(16, 16)
    code = net.estimate_code(image)
    low = net.predict_operator(image, torch.full((1, 1, 16, 16), 0.01), code, stage=1).predict()
    high = net.predict_operator(image, torch.full((1, 1, 16, 16), 0.5), code, stage=1).predict()
    assert not torch.allclose(low, high, atol=1e-4)


def test_settings_rebuild_the_same_network():
    net = trained_looking(make(kernel_size=5, uncertainty="tap_mean"))
    twin = OPIR.from_settings(net.settings).eval()
    twin.load_state_dict(net.state_dict())
    torch.testing.assert_close(twin(picture(20, 20)).refined, net(picture(20, 20)).refined, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kernel_size": 4}, "odd"),
        ({"widht": 8}, "Did you mean 'width'"),
        ({"width": "8"}, "'width'"),
        ({"width": True}, "'width'"),
        ({"tasks": "noise"}, "'tasks'"),
        ({"stages": 3}, "1 or 2"),
        ({"tasks": ["noise", "noise"]}, "none twice"),
        ({"dilations": []}, "dilations"),
        ({"uncertainty": "maybe"}, "learned, tap_mean, off"),
        ({"decoder_blocks": [1]}, "decoder_blocks"),
        ({"middle_blocks": -1}, "middle_blocks is -1; it must be 0 or more"),
        ({"encoder_blocks": [1, -1]}, "encoder_blocks is .* 0 or more at each level"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(UserError, match=said):
        OPIR.from_settings({**SMALL, **settings})
    with pytest.raises(UserError, match="lack tasks"):
        OPIR.from_settings({key: value for key, value in SMALL.items() if key != "tasks"})


def test_same_result_alone_and_in_a_batch():
    net = trained_looking(make())
    image = torch.cat([picture(24, 40), picture(24, 40, seed=3)])
    alone = torch.cat([net(image[:1]).refined, net(image[1:]).refined])
    torch.testing.assert_close(net(image).refined, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    net = trained_looking(make())
    image = picture(96, 130)
    on_cpu = net(image)
    on_gpu = net.cuda()(image.cuda())
    torch.testing.assert_close(on_gpu.refined.cpu(), on_cpu.refined, rtol=1e-3, atol=1e-3)


def test_folded_task_parameters_equal_project_then_rescale_shift_and_amplify():
    net = trained_looking(make())
    image = torch.cat([picture(12, 10), picture(12, 10, seed=4)])
    code = net.estimate_code(image)
    prediction, parameters = net.stages[0], net.task_parameters[0]
    operator = net.predict_operator(image, torch.ones(2, 1, 12, 10), code, stage=0)
    raw = prediction.projection(operator.features.movedim(1, -1)).movedim(-1, 1)
    change = parameters.affine(raw, code)
    gain = parameters.gain.numbers(code).exp()[..., None, None]
    for colour in range(3):
        taps = change[:, 9 * colour : 9 * colour + 9]
        taps = taps - 0.9 * taps.mean(1, keepdim=True)
        taps[:, 4] += 1
        slow = gain[:, colour, None] * taps
        torch.testing.assert_close(operator.predict()[:, 9 * colour : 9 * colour + 9], slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(operator.predict()[:, 27:], gain * change[:, 27:], rtol=1e-4, atol=1e-5)


def test_only_the_gain_and_the_offset_change_the_brightness_of_a_flat_picture_much():
    net = make(tasks=["rain"], dilations=[1, 2])
    parameters = net.task_parameters[0]
    flat = torch.full((1, 3, 20, 20), 0.4)
    with torch.no_grad():
        parameters.mix.weight += torch.tensor([[0.7], [-0.1]])  # their sum stays 1
        parameters.affine.weight[0, 1, :27] = 0.01  # all taps by as much: nine times that, lessened to a tenth
        torch.testing.assert_close(net(flat).coarse, flat * (1 + 9 * 0.01 * 0.1))
        parameters.affine.weight[0, 1, :27] = 0
        parameters.gain.weight[0] = torch.tensor([1.0, 2.0, 4.0]).log()
        gained = net(flat).coarse / flat
    torch.testing.assert_close(gained[0, :, 5, 5], torch.tensor([1.0, 2.0, 4.0]))


@pytest.mark.parametrize("settings", [{}, {"per_colour": False, "offset": False, "dilations": [2], "kernel_size": 5}])
def test_the_fused_operator_gives_what_the_separate_steps_give(settings):
    """Value and every gradient, with a batch of two tasks and the gradient through both stages."""
    results = []
    for fused in (True, False):
        net = trained_looking(make(fused=fused, detach_between_stages=False, **settings))
        image = torch.cat([picture(13, 18), picture(13, 18, seed=4)])
        restored = net(image, task=torch.tensor([1, 2]))
        loss = restored.coarse.square().sum() + restored.refined.square().sum() + restored.uncertainty.sum()
        names, parameters = zip(*net.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        results.append((restored.refined, dict(zip(names, gradients, strict=True))))
    (value, gradients), (truth, true_gradients) = results
    torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5)
    reached = [name for name, gradient in true_gradients.items() if gradient is not None]
    assert len(reached) > 20
    for name in reached:
        torch.testing.assert_close(gradients[name], true_gradients[name], rtol=1e-3, atol=1e-3, msg=name)


def test_the_mean_of_the_taps_is_read_off_their_projection():
    net = trained_looking(make(uncertainty="tap_mean"))
    image = picture(12, 14)
    operator = net.predict_operator(image, torch.ones(1, 1, 12, 14), net.estimate_code(image), stage=0)
    mean = operator.predict()[:, :27].mean(1, keepdim=True).abs()
    map_ = net.perceive_uncertainty(image, image, operator, None)
    torch.testing.assert_close(map_, mean + 4e-4, rtol=1e-4, atol=1e-5)


def test_under_autocast_the_identity_operator_stays_exact():
    """Taps in bfloat16 would round a picture's own values by up to half a grey level."""
    net = make()
    for prediction in net.stages:
        torch.nn.init.zeros_(prediction.projection.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        restored = net(picture(24, 24))
    torch.testing.assert_close(restored.refined, picture(24, 24), rtol=0, atol=1e-6)


def test_statistics_are_standardised_by_what_was_seen_first_and_the_same_in_use():
    torch.manual_seed(0)
    standardise = Standardise(4, samples=64)
    first, later = torch.randn(64, 4) * 3 + 7, torch.randn(64, 4) - 20
    for batch in first.split(8):
        standardise(batch)
    seen = standardise(first)
    torch.testing.assert_close(seen.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)
    standardise(later)  # past the limit: nothing moves any more
    torch.testing.assert_close(standardise.eval()(first), seen)
    assert standardise(later).min() == -5
    standardise.train().load_state_dict(Standardise(4).state_dict())  # those of a beginning
    standardise(later)
    assert standardise.count == 64


def test_the_map_knows_what_the_operator_changed():
    """Unlike the rest of the picture, a patch that comes out changed by much is uncertain."""
    head = make().uncertainty_head
    image = torch.full((1, 3, 48, 48), 0.5)
    result = image.clone()
    result[..., 16:24, 16:24] += 0.2
    uncertainty = head(torch.zeros(1, 8, 48, 48), image, result, None)
    assert uncertainty[..., 17:23, 17:23].min() > 1.2 * uncertainty[..., 36:, 36:].max()
    assert uncertainty[..., : 16 - head.reach, :].std() < 1e-6
