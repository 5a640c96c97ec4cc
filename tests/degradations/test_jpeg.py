"""The file that a damaged picture goes through: what it does to the pixels, to whom, and where its blocks lie."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from opir_lightning.degradations import Haze, Identity, Jpeg, Noise, compress


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_file_is_that_of_another_encoder(photo):
    """Pillow with libjpeg writes the same file, but for its own conversion of colours."""
    photo = photo[:, :144, :224]
    for quality, halved in ((75, True), (95, False)):
        memory = io.BytesIO()
        pixels = (photo * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(memory, "JPEG", quality=quality, subsampling=2 if halved else 0)
        other = torch.from_numpy(np.array(Image.open(memory))).permute(2, 0, 1).float() / 255
        ours = compress(photo, quality=quality, halved=halved)
        assert float((ours - other).abs().mean()) < 0.2 * float((ours - photo).abs().mean())


def test_the_lower_the_quality_the_more_is_lost(photo):
    errors = [float((compress(photo, quality=q) - photo).square().mean()) for q in (98, 90, 75, 40)]
    assert errors == sorted(errors)
    assert float((compress(photo, quality=90, halved=False) - photo).square().mean()) < errors[1]


def test_blocks_begin_where_they_are_said_to():
    """At a low quality a gentle slope becomes stairs, one step a block."""
    slope = torch.linspace(0.3, 0.5, 64).expand(3, 24, 64)
    for shift in (0, 3):
        across = compress(slope, quality=5, halved=False, left=shift)[0, 0]
        down = compress(slope.mT, quality=5, halved=False, top=shift)[0, :, 0]
        for stairs in (across, down):
            steps = torch.nonzero((stairs[1:] - stairs[:-1]).abs() > 1 / 255)[:, 0] + 1 + shift
            assert len(steps) >= 2
            assert (steps % 8 == 0).all()


def test_a_share_of_the_pictures_goes_through_a_file_and_the_others_are_as_without(photo):
    noise, some = Noise(), Jpeg(Noise(), share=0.4)
    patch = photo[:, :24, :24]
    untouched = [torch.equal(some(patch, generator=seeded(i)), noise(patch, generator=seeded(i))) for i in range(200)]
    assert 0.5 < sum(untouched) / 200 < 0.7


def test_files_differ_in_quality_and_place_and_colours_and_not_with_severity(photo):
    draws = [Jpeg(Identity(), quality=[80, 90]).draw(8, 8, generator=seeded(i), severity=0.3) for i in range(400)]
    assert {draw.quality for draw in draws} == set(range(80, 91))
    assert {draw.top for draw in draws} == {draw.left for draw in draws} == set(range(16))
    assert 0.6 < sum(draw.halved for draw in draws) / 400 < 0.8
    assert draws[:9] == [
        Jpeg(Identity(), quality=[80, 90]).draw(8, 8, generator=seeded(i), severity=0.9) for i in range(9)
    ]


def test_what_the_degradation_needs_and_is_told_goes_through(photo):
    depth = torch.linspace(0, 2, 40)[:, None].expand(40, 50).contiguous()
    patch = photo[:, :40, :50]
    filed, haze = Jpeg(Haze(1.0), quality=100, halved_share=0.0), Haze(1.0)
    assert filed.takes_depth
    assert filed.severity == haze.severity
    result = filed(patch, generator=seeded(), severity=0.8, depth=depth)
    assert float((result - haze(patch, generator=seeded(), severity=0.8, depth=depth)).abs().mean()) < 1 / 255


def test_a_function_goes_through_a_file_too(photo):
    def darken(clean, *, generator, severity):
        return clean * 0.5

    filed = Jpeg(darken, quality=85)
    assert not filed.batched
    assert not hasattr(filed, "severity")
    result = filed(photo, generator=seeded(), severity=None)
    assert 0 < float((result - photo * 0.5).abs().mean()) < 0.03
