"""The stream of training samples, by hash: the same for any number of workers and ranks, and after every resume."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from opir_lightning.data import CleanFolder, Curriculum
from opir_lightning.data.datamodule import RestorationData
from opir_lightning.data.mixture import samples_used
from opir_lightning.degradations import Blur, Haze, Identity, LowLight, Noise, Rain
from opir_lightning.types import Batch

DEGRADATIONS = {
    "none": Identity(),
    "noise": Noise(),
    "rain": Rain(),
    "haze": Haze(),
    "blur": Blur(),
    "low_light": LowLight(),
}
SAMPLES, BATCH = 32, 4  # of an epoch, and over all ranks


def data(**settings) -> RestorationData:
    sources = {task: CleanFolder(task, degradation, []) for task, degradation in DEGRADATIONS.items()}
    common = {"tasks": list(sources), "train": sources, "val": {}, "crop": 32, "batch_size": BATCH, "seed": 5}
    made = RestorationData(**{**common, "epoch_samples": SAMPLES, "workers": 0, **settings})
    made.prepare_sets()
    return made


def attach(made: RestorationData, *, steps=0, rank=0, world=1, accumulate=1) -> RestorationData:
    """What the data side reads of a trainer that is so far."""
    made.trainer = SimpleNamespace(
        global_step=steps,
        global_rank=rank,
        world_size=world,
        accumulate_grad_batches=accumulate,
        limit_train_batches=1.0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return made


def digest(*sample: Tensor | str) -> str:
    *tensors, name = sample
    parts = [part.numpy().tobytes() for part in tensors]
    return hashlib.blake2b(b"".join(parts) + name.encode(), digest_size=8).hexdigest()


def digests(made: RestorationData) -> list[str]:
    """One for each sample that the loader of this trainer's epoch still has, in order."""
    found = []
    for batch in made.train_dataloader():
        finished = made.on_after_batch_transfer(batch, 0)
        found += [digest(*sample) for sample in zip(*finished, strict=True)]
    return found


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The stream of two epochs in one process."""
    made = data()
    first, second = (digests(attach(made, steps=epoch * SAMPLES // BATCH)) for epoch in (0, 1))
    assert len(set(first + second)) == 2 * SAMPLES
    return first + second


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_it(alone, workers):
    assert digests(attach(data(workers=workers))) == alone[:SAMPLES]


@pytest.mark.parametrize("epoch", [0, 1])
def test_two_ranks_together_have_the_stream_of_one(alone, epoch):
    halves = [
        digests(attach(data(batch_size=BATCH // 2), rank=rank, world=2, steps=epoch * SAMPLES // BATCH))
        for rank in (0, 1)
    ]
    together = [sample for both in zip(*halves, strict=True) for sample in both]
    assert together == alone[epoch * SAMPLES : (epoch + 1) * SAMPLES]


def test_after_a_resume_at_any_step_the_very_next_sample_follows(alone):
    made = data()
    for steps in range(2 * SAMPLES // BATCH):
        epoch = steps * BATCH // SAMPLES
        rest = digests(attach(made, steps=steps))
        assert rest == alone[steps * BATCH : (epoch + 1) * SAMPLES], steps


def test_degraded_on_the_device_a_batch_is_what_the_workers_make_of_it(alone):
    pending = data(degrade_on="device", workers=1)
    assert digests(attach(pending)) == alone[:SAMPLES]


def test_packed_pictures_give_the_same_stream(alone, tmp_path):
    assert digests(attach(data(packs=str(tmp_path), workers=1))) == alone[:SAMPLES]
    assert list(tmp_path.glob("*.pack"))


def test_another_seed_is_another_stream(alone):
    assert not set(digests(attach(data(seed=6)))) & set(alone)


@pytest.mark.parametrize(
    ("steps", "epoch", "settings", "used"),
    [
        (3, 0, {}, 3 * 8),
        (10, 1, {}, 0),  # an epoch is over
        (13, 1, {}, 3 * 8),
        (2, 0, {"accumulate": 4}, 8 * 8),
        (4, 1, {"accumulate": 4}, 4 * 8),  # 4 + 4 + 2 batches are an epoch
        (3, 1, {"accumulate": 4}, 0),
        (6, 1, {"limit": 5}, 1 * 8),  # of ten batches an epoch has five
        (6, 1, {"limit": 0.5}, 1 * 8),
        (13, 1, {"limit": 1.0}, 3 * 8),
    ],
)
def test_steps_tell_how_many_samples_of_the_epoch_are_used(steps, epoch, settings, used):
    counted = samples_used(
        steps, batches=10, global_batch=8, accumulate=settings.get("accumulate", 1), limit=settings.get("limit")
    )
    assert counted == (epoch, used)


class Recorder(LightningModule):
    """Writes down the samples that its rank is given."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder, self.weight, self.seen = folder, torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen += [digest(*sample) for sample in zip(*batch, strict=True)]
        return self.weight * 0

    def on_train_end(self) -> None:
        with (Path(self.folder) / f"{self.global_rank}.json").open("w") as file:
            json.dump(self.seen, file)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_two_real_ranks_of_a_trainer_have_the_stream_of_one(alone, tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp_fork",
        devices=2,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.fit(Recorder(str(tmp_path)), data(batch_size=BATCH // 2))
    halves = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [sample for both in zip(*halves, strict=True) for sample in both] == alone


def test_a_curriculum_moves_severities_and_weights_and_ends():
    noise = CleanFolder("noise", Noise([0, 50], shot_share=0.0), [])
    rain = CleanFolder("rain", Rain(), [])
    made = data(
        tasks=["noise", "rain"],
        train={"noise": noise, "rain": rain},
        curriculum=Curriculum(samples=300, severity=(0.8, 1.0), weights={"rain": 0.0}),
    )
    plain = data(tasks=["noise", "rain"], train={"noise": noise, "rain": rain})
    early, late = ([made.mixture[n] for n in range(start, start + 60)] for start in (0, 300))
    assert sum(sample.task for sample in early) < 20 < sum(sample.task for sample in late) < 45
    first_quarter = [
        sorted(float((s.degraded - s.clean).std()) * 255 for s in samples if s.task == 0)[10]
        for samples in (early, late)
    ]
    assert first_quarter[0] > 20 > 16 > first_quarter[1]  # severities from 0.64 up are deviations from 32 up, clipped
    same = [torch.equal(a.degraded, plain.mixture[n].degraded) for n, a in enumerate(late, start=300)]
    assert all(same)


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["none", "noise", "rain", "haze", "blur", "low_light"])
def test_a_batch_that_is_degraded_on_a_gpu_is_that_of_the_cpu_but_for_its_noise(task):
    chosen = {task: CleanFolder(task, DEGRADATIONS[task], [])}
    made = data(train=chosen, tasks=[task], degrade_on="device", batch_size=16)
    pending = next(iter(attach(made).train_dataloader()))
    on_cpu = made.on_after_batch_transfer(pending, 0)
    on_gpu = made.on_after_batch_transfer(made.transfer_batch_to_device(pending, torch.device("cuda"), 0), 0)
    assert on_gpu.degraded.is_cuda
    torch.testing.assert_close(on_gpu.clean.cpu(), on_cpu.clean, rtol=2e-7, atol=0)  # a division by 255
    difference = (on_gpu.degraded.cpu() - on_cpu.degraded).flatten(1)
    if task in ("none", "rain", "haze"):
        assert difference.abs().max() <= 1.01 / 255  # a rounding may fall to the other side
    else:  # other random numbers of the same strength
        strength = [(b.degraded.cpu() - b.clean.cpu()).flatten(1).std(1) for b in (on_gpu, on_cpu)]
        torch.testing.assert_close(strength[0], strength[1], rtol=0.1, atol=1 / 255)
        assert difference.mean().abs() < 2 / 255
        # A camera's noise comes in blotches, of which a crop holds few: their mean is a part of their deviation.
        assert (difference.mean(1).abs() < 0.4 * (strength[1] + 1 / 255)).all()
