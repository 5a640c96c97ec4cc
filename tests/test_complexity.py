"""Parameters and multiply-adds: counted by torch, within the budgets of the three variants."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from opir_lightning.complexity import count
from opir_lightning.config import check_keys, config_dir, register_schemas
from opir_lightning.count import main
from opir_lightning.ops.operator_conv import operator_conv

register_schemas()


@pytest.mark.parametrize(
    ("variant", "parameters", "macs"), [("opir_tiny", 0.6e6, 2e9), ("opir_small", 3e6, 10e9), ("opir_base", 10e6, 30e9)]
)
def test_variants_stay_within_their_budgets(variant, parameters, macs):
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        config = compose("train", [f"model={variant}", "run_dir=."])
    counted = count(instantiate(check_keys(config)["model"], _convert_="all"), 256)
    assert 0 < counted[0] <= parameters
    assert 0 < counted[1] <= macs


@pytest.mark.parametrize("groups", [1, 3])
def test_the_operator_is_counted_per_tap_colour_and_dilation(groups):
    class Net(torch.nn.Module):
        def forward(self, x):
            return operator_conv(x, torch.zeros(1, groups * 25, *x.shape[-2:]), dilations=(1, 2), groups=groups)

    assert count(Net(), 8) == (0, 8 * 8 * 3 * 25 * 2)


def test_command_prints_a_variant_and_names_an_unknown_one(capsys):
    assert main(["opir_tiny", "model.kernel_size=5", "--size", "64"]) == 0
    assert "opir_tiny" in capsys.readouterr().out
    assert main(["model=opir_tiny"]) == 1  # it would have been that one for all of them
    assert "name the variant itself: opir_tiny" in capsys.readouterr().err
    assert main(["opir_huge"]) == 1
    assert "opir_huge" in capsys.readouterr().err
    assert main(["opir_tiny", "--size", "0"]) == 1
    assert "--size is 0; it must be a number of pixels" in capsys.readouterr().err
    assert main(["opir_tiny", "model.width=0"]) == 1
    assert "error: model.width is 0; it must be at least 1" in capsys.readouterr().err
