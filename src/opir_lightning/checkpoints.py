"""Weights on disk: written atomically, checked before anything is built, and never able to run code.

A weights file is safetensors with three entries in its header: ``format``, ``settings`` (the model's constructor
arguments, JSON) and ``metadata`` (whatever the writer wants to tell, JSON). Lightning checkpoints of a training run are
read too: ``model_settings`` and, under ``state_dict``, the averaged weights (the live ones are in
``current_model_state``, see ``lightning.pytorch.callbacks.WeightAveraging``).
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opir_lightning import hub
from opir_lightning.errors import UserError
from opir_lightning.files import kind_of, write_atomically
from opir_lightning.fitting import anywhere, check_settings, compare_weights, expected_weights, first_line
from opir_lightning.models import OPIR
from opir_lightning.models.growth import GROWING, grow
from opir_lightning.outside import check_checkpoint, parse_json, printable

FORMAT = "opir-lightning/1"
LARGEST_HEADER = 8 * 2**20  # opir_base needs about 50 KB; a larger header is refused before it is parsed

_NET_PREFIX = "net."
_SETTINGS = inspect.signature(OPIR).parameters
_WEIGHTS_DIR = Path(__file__).parent / "weights"
DEFAULT_WEIGHTS = "opir_small"  # the best that are packaged
CHECKSUMS = "SHA256SUMS"  # beside the packaged weights, in the format of sha256sum


class Header(NamedTuple):
    """What a weights file says about itself.

    Attributes:
        format: ``"opir-lightning/1"``, or ``"lightning"`` for a checkpoint of a training run.
        settings: the model's constructor arguments.
        metadata: what the writer added; for a training checkpoint its ``epoch`` and ``step``.
    """

    format: str
    settings: dict[str, Any]
    metadata: dict[str, Any]


def save_weights(path: Path | str, model: OPIR, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model's weights and settings as one safetensors file, atomically.

    Args:
        path: file to write, ``.safetensors``; an existing one is replaced.
        model: its ``state_dict`` is stored with the dtypes it has.
        metadata: for the reader, whatever JSON can hold, e.g. ``{"step": 20000, "psnr": {"Rain100L": 27.1}}``.

    Raises:
        UserError: the path has another suffix, which no reader would recognise.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"Weights are written as safetensors, so '{path}' must end in .safetensors.")
    write_atomically(path, pack_weights(model, metadata))


def pack_weights(model: OPIR, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The content of a weights file; arguments as in `save_weights`."""
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    header = {"format": FORMAT, "settings": json.dumps(model.settings), "metadata": json.dumps(dict(metadata or {}))}
    return safetensors.torch.save(tensors, header)


def available_weights() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in _WEIGHTS_DIR.glob("*.safetensors"))


def default_weights() -> str:
    """Name of the packaged weights to use where nobody names any.

    Raises:
        UserError: there are none.
    """
    names = available_weights()
    if not names:
        raise UserError("No weights come with this installation: --weights with a .safetensors or .ckpt file.")
    return DEFAULT_WEIGHTS if DEFAULT_WEIGHTS in names else next(iter(names))


def find_weights(path_or_name: Path | str) -> Path:
    """The weights file that a command-line argument means.

    Args:
        path_or_name: name of packaged weights, a ``.safetensors`` or ``.ckpt`` file, the folder of a training run (its
            ``model.safetensors``, otherwise its ``checkpoints/last.ckpt``), or ``owner/name`` or
            ``owner/name@revision`` of a model on the Hugging Face Hub, whose ``model.safetensors`` is fetched. They
            are tried in this order; ``./NAME`` is always a file or folder, and so is a `Path`.

    Raises:
        UserError: nothing there, or it cannot be fetched.
    """
    names = available_weights()
    if str(path_or_name) in names:
        return _WEIGHTS_DIR / f"{path_or_name}.safetensors"
    path = Path(path_or_name)
    if kind_of(path) == "folder":
        candidates = (path / "model.safetensors", path / "checkpoints" / "last.ckpt")
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise UserError(f"The folder '{path}' holds neither model.safetensors nor checkpoints/last.ckpt.")
    if kind_of(path) != "file":
        if isinstance(path_or_name, str) and (model := hub.parse_id(path_or_name)):
            return hub.download(model)
        packaged = f"the packaged names are {', '.join(names)}" if names else "no weights come with this installation"
        raise UserError(
            f"There is no weights file '{path}', and {packaged}; pass the path of a .safetensors or .ckpt, "
            "or OWNER/NAME of a model on the Hugging Face Hub."
        )
    if path.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"'{path}' is no weights file: it must end in .safetensors or .ckpt.")
    return path


def read_header(path_or_name: Path | str) -> Header:
    """Settings and metadata of a weights file, without building a model.

    Raises:
        UserError: the file is missing, broken, or from something else.
    """
    return _read(find_weights(path_or_name), tensors=False)[0]


def load_model(path_or_name: Path | str, map_location: torch.device | str = "cpu") -> tuple[OPIR, Header]:
    """Build the model that a weights file describes and fill in its weights.

    Names, shapes and dtypes of all tensors are compared with those the settings call for before memory is taken for
    the model. Half-precision weights are widened to float32.

    Args:
        path_or_name: as in `find_weights`.
        map_location: device of the result.

    Returns:
        The model in evaluation mode, and the header.

    Raises:
        UserError: the file is missing, broken, from something else, or holds values that are not finite.
    """
    path = find_weights(path_or_name)
    header, tensors = _read(path, tensors=True)
    settings = anywhere(header.settings)
    compare_weights(path, tensors, expected_weights(path, settings))
    model = OPIR.from_settings(settings)
    model.load_state_dict(tensors)
    return model.to(map_location).eval(), header


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What the checkpoint of a training holds; its tensors stay on the disk until they are used.

    Raises:
        UserError: it is damaged, from something else, or holds more than plain data.
    """
    check_checkpoint(path)
    try:
        # mmap: the optimizer's state, twice the size of the weights, stays on the disk.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise UserError(
            f"'{path}' is not a training checkpoint of this program: it is damaged or holds more than plain data."
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"'{path}' is not a training checkpoint: it has no 'state_dict'.")
    if "model_settings" not in checkpoint:
        raise UserError(f"'{path}' was written by another program: it has no 'model_settings'.")
    return checkpoint


def start_from(net: OPIR, path_or_name: Path | str) -> Header:
    """Fill a network with the weights of another one, to train on from there.

    The weights of one stage may start a network of two: its second stage then starts at the identity operator, as in a
    new network. Those of a smaller network may start a larger one, see `opir_lightning.models.growth`.

    Args:
        net: what to fill; it keeps its settings.
        path_or_name: as in `find_weights`.

    Returns:
        The header of the file.

    Raises:
        UserError: the file is missing, broken or from something else, or its weights do not fit the network.
    """
    path = find_weights(path_or_name)
    header, tensors = _read(path, tensors=True)
    own = net.state_dict()
    # A file from before a setting there was has the network that its default builds.
    given = {name: header.settings.get(name, setting.default) for name, setting in _SETTINGS.items()}
    if any(net.settings[name] != given[name] for name in GROWING):
        small, _ = load_model(path)
        try:
            grow(small, net)
        except UserError as error:
            raise UserError(f"'{path}' cannot start this network: {error}") from error
        return header
    second_stage = {name: value for name, value in own.items() if name.startswith("task_parameters.1.")}
    if header.settings.get("stages") == 1:
        tensors = {**second_stage, **tensors}
    try:
        compare_weights(path, tensors, own)
    except UserError as error:
        differing = [
            f"{name} is {header.settings.get(name)!r} there and {value!r} here"
            for name, value in net.settings.items()
            if header.settings.get(name) != value
        ]
        raise UserError(f"{error} Its settings differ: {'; '.join(differing) or 'in nothing'}.") from error
    net.load_state_dict(tensors)
    return header


def _verify_packaged(path: Path) -> None:
    """Raise `UserError` if a file of the package is not the one that was packed; other files have no checksum."""
    if path.parent != _WEIGHTS_DIR:
        return
    sums = _WEIGHTS_DIR / CHECKSUMS
    lines = sums.read_text().splitlines() if sums.is_file() else []
    wanted = {name.strip(): digest for digest, _, name in (line.partition("  ") for line in lines)}
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted.get(path.name):
        raise UserError(
            f"The packaged weights '{path.name}' are not those that were packed: install the package again."
        )


def _read(path: Path, *, tensors: bool) -> tuple[Header, dict[str, Tensor]]:
    _verify_packaged(path)
    header, values = _read_ckpt(path) if path.suffix == ".ckpt" else _read_safetensors(path, tensors=tensors)
    check_settings(path, header.settings)
    return header, values


def _read_safetensors(path: Path, *, tensors: bool) -> tuple[Header, dict[str, Tensor]]:
    try:
        with path.open("rb") as file:
            announced = int.from_bytes(file.read(8), "little")
        if announced > LARGEST_HEADER:
            raise UserError(f"'{path}' is not a safetensors file: its header would have {announced} bytes.")
        if (size := path.stat().st_size) > hub.LARGEST_FILE:
            raise UserError(f"'{path}' holds other weights: it has {size} bytes, and {hub.LARGEST_FILE} are allowed.")
        with safe_open(path, framework="pt") as file:
            raw = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:  # the last is torch's, where there is no memory to map it
        raise UserError(f"'{path}' is not a complete safetensors file ({first_line(error)}).") from error
    if raw.get("format") != FORMAT:
        kind = printable(raw.get("format", "nothing")[:40])
        raise UserError(f"'{path}' holds other weights: its header must say '{FORMAT}' and says '{kind}'.")
    try:
        settings, metadata = parse_json(raw.get("settings", "")), parse_json(raw.get("metadata", "{}"))
    except ValueError as error:
        raise UserError(
            f"The header of '{path}' is damaged: its settings or metadata are no JSON of plain data."
        ) from error
    if not isinstance(metadata, dict):
        raise UserError(f"The header of '{path}' is damaged: its metadata are no table of names and values.")
    return Header(FORMAT, settings, metadata), values


def _read_ckpt(path: Path) -> tuple[Header, dict[str, Tensor]]:
    checkpoint = read_checkpoint(path)
    state = checkpoint["state_dict"]
    weights = {
        key.removeprefix(_NET_PREFIX): state[key]
        for key in state
        if isinstance(key, str) and key.startswith(_NET_PREFIX)
    }
    metadata = {
        name: checkpoint[key]
        for name, key in (("epoch", "epoch"), ("step", "global_step"))
        if isinstance(checkpoint.get(key), int)
    }
    return Header("lightning", checkpoint["model_settings"], metadata), weights
