"""What is measured: settings, the fewest bytes they move, and the series that they form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

FORWARD = "forward"
BACKWARD = "backward"
BOTH = "forward + backward"
TAPS_GRADIENT = "gradient of the taps"
IMAGE_GRADIENT = "gradient of the image"

# Names of the ways to compute it; what stands behind them is in ways.py.
REFERENCE, SHIFTED, TRITON = "reference", "shifted", "triton"
EINSUM, SUM, CONV2D = "unfold + einsum", "unfold + multiply + sum", "conv2d, one kernel"
FUSED_SHIFTED, FUSED_TRITON = "fused, shifted", "fused, triton"
UNFUSED_SHIFTED, UNFUSED_TRITON = "projection + shifted", "projection + triton"


class Setting(NamedTuple):
    """One problem.

    Attributes:
        B: pictures at once.
        C: channels of the picture.
        G: 1 where the channels share the taps, else C.
        H: height in pixels.
        W: width in pixels.
        K: the operator is K x K.
        dilations: the same taps are applied at each of these; D of them.
        image: dtype of image and result.
        taps: dtype of the taps or, where they are predicted in the same operation, of the features.
        F: features that the taps (and one offset per channel) are projected from; 0: the taps are given.
    """

    B: int
    C: int
    G: int
    H: int
    W: int
    K: int
    dilations: tuple[int, ...] = (1,)
    image: str = "float32"
    taps: str = "float32"
    F: int = 0

    @property
    def projected(self) -> int:
        """Rows of the projection: the taps and C offsets."""
        return self.G * self.K**2 + self.C

    def __str__(self) -> str:
        sharing = "shared" if self.G == 1 else "per channel"
        dilations = ",".join(map(str, self.dilations))
        features = f", {self.F} features" if self.F else ""
        shape = f"{self.B}x{self.C}x{self.H}x{self.W}"
        dtypes = f"image {self.image}, {'features' if self.F else 'taps'} {self.taps}"
        return f"{shape}, K={self.K} {sharing}, dilations {dilations}{features}, {dtypes}"


def setting_of(record: dict[str, Any]) -> Setting:
    """The setting that a JSON file holds as a mapping."""
    return Setting(**{**record, "dilations": tuple(record["dilations"])})


def tensor_bytes(s: Setting) -> dict[str, int]:
    """Bytes of every tensor of a setting; gradients have the size of what they belong to."""
    pixels = s.B * s.H * s.W
    image = pixels * s.C * BYTES[s.image]
    if s.F:
        parameters = s.B * (s.projected * (s.F + 1) * BYTES[s.taps] + len(s.dilations) * s.C * BYTES[s.image])
        return {
            "image": image,
            "features": pixels * s.F * BYTES[s.taps],
            "parameters": parameters,
            "result": image,
            "upstream": image,
        }
    layers = len(s.dilations) * image
    return {
        "image": image,
        "taps": pixels * s.G * s.K**2 * BYTES[s.taps],
        "result": layers,
        "upstream": layers,
    }


def fewest_bytes(s: Setting, quantity: str) -> int:
    """Bytes that an operation moves at the least: every input read once, every result written once.

    ==========================  =====================================================================================
    forward                     taps + image + result
    gradient of the taps        upstream + image + gradient of the taps
    gradient of the image       upstream + taps + gradient of the image
    backward                    upstream + image + taps + both gradients: the inputs read once for both
    forward + backward          the sum of forward and backward
    ==========================  =====================================================================================

    Predicted from features (F > 0), the taps are never moved: forward is image + features + parameters + result,
    backward is upstream + image + features + parameters + the gradients of features and parameters (weight, bias, mix);
    the image needs no gradient there.
    """
    size = tensor_bytes(s)
    operator = size["features"] + size["parameters"] if s.F else size["taps"]
    if quantity == FORWARD:
        return operator + size["image"] + size["result"]
    if quantity == BOTH:
        return fewest_bytes(s, FORWARD) + fewest_bytes(s, BACKWARD)
    if quantity == BACKWARD:
        return size["upstream"] + size["image"] + 2 * operator + (0 if s.F else size["image"])
    if s.F or quantity not in (TAPS_GRADIENT, IMAGE_GRADIENT):
        raise ValueError(f"there is no quantity '{quantity}' for {s}")
    return size["upstream"] + size["image"] + size["taps"]  # one of the two read, the other one's gradient written


def needed_bytes(s: Setting, way: str, training: bool) -> int:
    """About what a way allocates beyond its inputs, never less: to tell what does not fit before it is tried.

    The unfolded picture has K*K values for each of the image's, in float32, and one further buffer holds the products
    (multiply + sum) or the factors in another order (einsum); for training it is kept for each dilation, and two more
    buffers hold gradients. The CPU's conv2d works on blocks of 16 channels, whether they are there or not.
    """
    pixels, D = s.B * s.H * s.W, len(s.dilations)
    taps, layers = pixels * s.G * s.K**2 * 4, pixels * D * s.C * 4
    if way in (EINSUM, SUM):
        columns = pixels * s.C * s.K**2 * 4
        return (D + 4 if training else 3) * columns + (2 if training else 1) * taps + 2 * layers
    if way == CONV2D:
        blocks = pixels * -(-s.C // 16) * 16 * 4
        return (4 if training else 2) * blocks + 3 * layers + (D + 2) * pixels * s.C * 4
    if way == REFERENCE:
        return (4 * s.K**2 * D * pixels * s.C * 4 if training else 0) + 2 * taps + 6 * layers
    if way in (UNFUSED_SHIFTED, UNFUSED_TRITON):
        return (4 if training else 2) * (taps + pixels * s.C * 4) + 4 * layers + pixels * s.F * 4
    features = pixels * s.F * 4
    return 2 * layers + 2 * pixels * s.C * 4 + (taps + features if training else 0)


class Series(NamedTuple):
    """Settings that belong together, each computed in the same ways."""

    name: str
    title: str
    ways: tuple[str, ...]
    settings: tuple[Setting, ...]


def _square(side: int, K: int, G: int, **options: Any) -> Setting:
    return Setting(**{"B": 1, "C": 3, "G": G, "H": side, "W": side, "K": K, **options})


def _default(side: int, **options: Any) -> Setting:
    """The default operator: 3 x 3, one per colour, four dilations."""
    return _square(side, 3, 3, dilations=(1, 2, 3, 4), **options)


def _predicted(side: int, features: str) -> tuple[Setting, ...]:
    return (
        _default(side, F=16, taps=features),
        _square(side, 5, 1, F=32, taps=features),
        _square(side, 7, 1, F=32, taps=features),
    )


def _sizes_of_operators(side: int, **options: Any) -> tuple[Setting, ...]:
    """K = 3 to 11, shared and per channel. What has a target comes first: a budget of time may end a series."""
    return tuple(_square(side, K, G, **options) for K in (5, 7, 3, 9, 11) for G in (1, 3))


def series_for(device: str) -> tuple[Series, ...]:
    """The series for "cpu" or "cuda", the most important ones first."""
    return _cuda_series() if device == "cuda" else _cpu_series()


def _cpu_series() -> tuple[Series, ...]:
    ways = (SHIFTED, EINSUM, SUM, CONV2D)
    sides = (512, 256, 1024)
    return (
        Series("default", "default operator over sizes", ways, tuple(map(_default, sides))),
        Series("k-512", "K at 512 x 512", ways, _sizes_of_operators(512)),
        Series("fused", "predict and apply", (FUSED_SHIFTED, UNFUSED_SHIFTED), _predicted(512, "float32")),
        Series(
            "dtypes",
            "taps in bfloat16",
            (SHIFTED, SUM),
            (_default(512, taps="bfloat16"), _square(512, 7, 1, taps="bfloat16")),
        ),
        Series(
            "c-32",
            "32 channels",
            (SHIFTED, SUM, CONV2D),
            (_square(256, 3, 32, C=32), _square(256, 5, 1, C=32), _square(256, 7, 1, C=32)),
        ),
        Series("small", "small, with the reference", (REFERENCE, *ways), (_default(128), _square(128, 5, 1))),
    )


def _cuda_series() -> tuple[Series, ...]:
    ways = (TRITON, SHIFTED, SUM, CONV2D)
    fused = (FUSED_TRITON, UNFUSED_TRITON, FUSED_SHIFTED, UNFUSED_SHIFTED)
    half: dict[str, Any] = {"taps": "bfloat16"}
    dtypes = [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", "float16")]
    of_dtypes = [
        make(image, taps)
        for image, taps in dtypes
        for make in (
            lambda image, taps: _default(2048, image=image, taps=taps),
            lambda image, taps: _square(2048, 7, 1, image=image, taps=taps),
        )
    ]
    return (
        Series(
            "default",
            "default operator over sizes",
            ways,
            tuple(_default(side, **half) for side in (2048, 4096, 1024, 512, 256)),
        ),
        Series("k-2048", "K at 4 megapixels", ways, _sizes_of_operators(2048, **half)),
        Series("fused", "predict and apply", fused, (*_predicted(2048, "bfloat16"), *_predicted(1024, "bfloat16"))),
        Series("k-4096", "K at 16 megapixels", (TRITON, SUM), tuple(_square(4096, K, 1, **half) for K in (5, 7))),
        Series("dtypes", "dtypes at 4 megapixels", (TRITON, SUM), tuple(of_dtypes)),
        Series("k-512", "K at 512 x 512", (TRITON, EINSUM, SUM, CONV2D), _sizes_of_operators(512, **half)),
        Series(
            "c-32",
            "32 channels",
            (TRITON, SHIFTED, SUM, CONV2D),
            (
                _square(512, 3, 32, C=32, **half),
                _square(512, 5, 1, C=32, **half),
                _square(512, 7, 1, C=32, **half),
            ),
        ),
        Series("batch", "crops for training", (TRITON, SUM, CONV2D), (_default(256, B=16, **half),)),
        Series("small", "small, with the reference", (REFERENCE, TRITON, SHIFTED, SUM), (_default(256, **half),)),
    )


def choose(
    device: str, names: Iterable[str] = (), *, quick: bool = False, side: int | None = None
) -> tuple[Series, ...]:
    """The series named, or all; ``quick`` keeps the first two settings of the first three.

    With ``side`` every picture is that many pixels high and wide.

    Raises:
        ValueError: there is no such series.
    """
    series = series_for(device)
    known, wanted = [one.name for one in series], list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"there is no series '{unknown[0]}' on {device}; there are {', '.join(known)}")
    if wanted:
        series = tuple(one for one in series if one.name in wanted)
    if quick:
        series = tuple(one._replace(settings=one.settings[:2]) for one in series[:3])
    if side is not None:
        series = tuple(
            one._replace(settings=tuple(dict.fromkeys(s._replace(H=side, W=side) for s in one.settings)))
            for one in series
        )
    return series
