"""Degradations: pure functions with an explicit generator, and one configurable class per task.

A config names a class by ``_target_`` (``opir_lightning.degradations.Rain``) and gives numbers and lists; anything with
the :class:`Degradation` protocol can stand in its place.
"""

from opir_lightning.degradations.base import Batched, Degradation
from opir_lightning.degradations.blur import Blur, blur
from opir_lightning.degradations.camera_noise import Camera, add_camera_noise
from opir_lightning.degradations.colour import linear_to_srgb, srgb_to_linear
from opir_lightning.degradations.compose import Compose, Identity
from opir_lightning.degradations.haze import Haze, apply_haze
from opir_lightning.degradations.jpeg import Jpeg, compress
from opir_lightning.degradations.low_light import Backlight, Lamp, LowLight, underexpose
from opir_lightning.degradations.made_up_depth import random_depth
from opir_lightning.degradations.noise import Noise, add_gaussian_noise, add_shot_noise, benchmark_noise, sensor_noise
from opir_lightning.degradations.rain import Rain, Streaks, add_rain, draw_streaks

__all__ = [
    "Backlight",
    "Batched",
    "Blur",
    "Camera",
    "Compose",
    "Degradation",
    "Haze",
    "Identity",
    "Jpeg",
    "Lamp",
    "LowLight",
    "Noise",
    "Rain",
    "Streaks",
    "add_camera_noise",
    "add_gaussian_noise",
    "add_rain",
    "add_shot_noise",
    "apply_haze",
    "benchmark_noise",
    "blur",
    "compress",
    "draw_streaks",
    "linear_to_srgb",
    "random_depth",
    "sensor_noise",
    "srgb_to_linear",
    "underexpose",
]
