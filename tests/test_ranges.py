"""What nobody else refuses of a training's settings."""

from __future__ import annotations

import pytest

from opir_lightning.errors import UserError
from opir_lightning.ranges import check_ranges
from opir_lightning.training.callbacks import ExponentialMovingAverage, OperatorPictures, PicturePanels

FINE = {"task_code": "blind", "seed": 0, "task_lr_factor": 2.0}
TRAINER = {"max_steps": 10, "max_epochs": -1, "gradient_clip_val": None, "limit_train_batches": 1.0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task_code": "x"}, "task_code is 'x'; it must be blind or label"),
        ({"seed": -1}, "seed is -1; it must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"task_lr_factor": -1.0}, "task_lr_factor is -1; it must be 0 or more"),
        ({"task_lr_factor": float("nan")}, "task_lr_factor is nan"),
        ({"trainer": {"max_steps": 0}}, "trainer.max_steps is 0; it must be more than 0, or no step would be taken"),
        ({"trainer": {"max_epochs": 0}}, "trainer.max_epochs is 0"),
        ({"trainer": {"limit_train_batches": 0.0}}, "trainer.limit_train_batches is 0"),
        ({"trainer": {"accumulate_grad_batches": 0}}, "trainer.accumulate_grad_batches is 0; it must be 1 or more"),
        ({"trainer": {"check_val_every_n_epoch": 0}}, "trainer.check_val_every_n_epoch is 0; it must be 1 or more"),
        ({"trainer": {"gradient_clip_val": -1.0}}, "trainer.gradient_clip_val is -1; it must be 0 or more"),
        ({"trainer": {"log_every_n_steps": -1}}, "trainer.log_every_n_steps is -1; it must be 0 or more"),
    ],
)
def test_a_setting_out_of_its_range_is_named(wrong, said):
    check_ranges({**FINE, "trainer": TRAINER})
    with pytest.raises(UserError) as refused:
        check_ranges({**FINE, "trainer": TRAINER, **wrong})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("callback", "settings", "said"),
    [
        (ExponentialMovingAverage, {"after": -1}, r"callbacks\.ema\.after is -1; it must be 0 steps or more"),
        (
            OperatorPictures,
            {"folder": ".", "picture": -1},
            r"operators\.picture is -1; it must be 0 or more",
        ),
        (PicturePanels, {"folder": ".", "picture": -1}, r"callbacks\.panels has picture=-1"),
        (PicturePanels, {"folder": ".", "side": 0}, "side=0; at least 0 and 1 are needed"),
    ],
)
def test_a_callbacks_setting_out_of_its_range_is_named(callback, settings, said):
    with pytest.raises(UserError, match=said):
        callback(**settings)
