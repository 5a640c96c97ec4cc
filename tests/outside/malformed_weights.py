"""Weights files and checkpoints that nobody should be able to hurt anybody with: one small network, spoiled."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from opir_lightning.checkpoints import FORMAT
from opir_lightning.models import OPIR

SETTINGS = {
    "tasks": ["none", "noise"],
    "width": 4,
    "encoder_blocks": [1],
    "middle_blocks": 1,
    "decoder_blocks": [1],
    "features": 4,
    "code_crop": 16,
}
File = tuple[str, str, bytes | Callable[[Path], object]]  # kind, name, content


class Payload:
    """Unpickling this calls something that leaves a folder or a file behind."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(canary: Path) -> Iterator[tuple[str, Payload]]:
    """Ways to run code, each of which would leave its name in the folder."""
    touch = f"__import__('pathlib').Path({str(canary / 'evaluated')!r}).mkdir()"
    yield "mkdir", Payload(os.mkdir, str(canary / "made"))
    yield "system", Payload(os.system, f"mkdir '{canary / 'shell'}'")
    yield "eval", Payload(eval, touch)
    yield "exec", Payload(exec, touch)
    yield "getattr", Payload(getattr, Payload(eval, touch), "x")


def network() -> OPIR:
    torch.manual_seed(0)
    return OPIR.from_settings(SETTINGS)


def packed(header: Any, data: bytes = b"", *, announced: int | None = None) -> bytes:
    """A safetensors file from whatever its header is to be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text + data


def good(settings: Any = None) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file that is in order, to be spoiled."""
    header: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "settings": json.dumps(settings or network().settings), "metadata": "{}"}
    }
    data = b""
    for name, tensor in network().state_dict().items():
        raw = tensor.detach().numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return header, data


def safetensors_files(rng: random.Random, canary: Path) -> Iterator[File]:
    header, data = good()
    whole = packed(header, data)
    length = struct.unpack("<Q", whole[:8])[0]
    for end in (0, 1, 7, 8, 9, 8 + length // 2, 8 + length, 9 + length, len(whole) // 2, len(whole) - 1):
        yield "cut", f"cut {end}", whole[:end]
    for number in (0, 1, length - 1, length + 1, len(whole), 2**31, 2**40, 2**63 - 1, 2**64 - 1):
        yield "length lied about", f"length {number}", packed(header, data, announced=number)
    for number in range(25):
        spoiled = bytearray(whole)
        for _ in range(1 + number % 4):
            spoiled[rng.randrange(8 + length if number % 2 else len(whole))] ^= 1 << rng.randrange(8)
        yield "bits flipped", f"flipped {number}", bytes(spoiled)
    first, second = [name for name in header if name != "__metadata__"][:2]
    size = header[first]["data_offsets"][1]
    for number, offsets in enumerate(
        ([0, size + 4], [size, 0], [-4, size - 4], [len(data), len(data) + size], [0.0, size], [0, 2**70], [0], "all")
    ):
        yield (
            "offsets",
            f"offsets {number}",
            packed({**header, first: {**header[first], "data_offsets": offsets}}, data),
        )
    both = {**header, second: {**header[second], "data_offsets": header[first]["data_offsets"]}}
    yield "offsets", "two at one place", packed(both, data)
    for kind in ("F64", "I32", "F8_E4M3", "BOOL", "XYZ", "", None, 3, "F16"):
        yield "dtypes", f"dtype {kind}", packed({**header, first: {**header[first], "dtype": kind}}, data)
    for number, shape in enumerate(([2**40, 2**40], [2**62, 4], [-1], [], [1] * 10_000, [1.5], "x", [[1]], [0])):
        yield "shapes", f"shape {number}", packed({**header, first: {**header[first], "shape": shape}}, data)
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for name, text in {
        "no json": b"settings: 4",
        "nan": b'{"a": NaN}',
        "deep": b'{"a":' + b"[" * 100_000,
        "bytes": b'{"\xff\xfe": 1}',
        "list": b"[]",
        "null": b"null",
        "twice": json.dumps(header).encode()[:-1] + b"," + json.dumps({first: header[first]}).encode()[1:],
        "many": json.dumps(dict.fromkeys(map(str, range(50_000)), nothing)).encode(),
        "endless number": b'{"a": ' + b"9" * 100_000 + b"}",
        "metadata no texts": json.dumps({"__metadata__": {"format": 1}}).encode(),
        "escape codes": json.dumps({"__metadata__": {"format": "\x1b[2J\n\r"}}).encode(),
    }.items():
        yield "header", name, packed(text, data)
    yield from _settings_files(header, data)
    yield "huge", "sparse", lambda path: _sparse(path, 50 * 2**30)
    yield "huge", "sparse and small enough", lambda path: _sparse(path, 2**30 - 2**20)
    for protocol in range(6):
        for name, payload in payloads(canary):
            yield "pickle", f"pickle {protocol} {name}", pickle.dumps({"state_dict": payload}, protocol)
    yield "pickle", "torch.save", _saved({"x": Payload(os.mkdir, str(canary / "saved"))})


def _settings_files(header: dict[str, Any], data: bytes) -> Iterator[File]:
    changes: list[dict[str, Any]] = [
        *({name: value} for name in ("width", "middle_blocks", "kernel_size") for value in (
            float("nan"), float("inf"), -1, 0, True, "4", None, [4], {}, 1e308, 10**19, 2**12, 4095)),
        *({"tasks": tasks} for tasks in (
            [], "none", ["a", "a"], ["\x1b[2J"], ["x" * 10_000], ["a\nb"], [1], [["a"]],
            [f"t{n}" for n in range(10_000)])),
        *({name: [1] * 100} for name in ("encoder_blocks", "dilations")),
        {"encoder_blocks": [1] * 60, "decoder_blocks": [1] * 60},
        {"encoder_blocks": [], "decoder_blocks": []},
        {"dilations": [0]}, {"dilations": [10**6]}, {"stages": 3}, {"features": 10**6}, {"code_crop": 10**9},
        {"features": 256, "width": 3000}, {"padding": "x"}, {"backend": "os.system"}, {"backend": "triton"},
        {"_target_": "os.system"}, {"self": 1}, {"w\nidth": 1}, {"\x1b[2J": 1}, {"severity_size": 2**31},
    ]  # fmt: skip
    for number, change in enumerate(changes):
        meta = {**header["__metadata__"], "settings": json.dumps({**network().settings, **change})}
        yield "settings", f"settings {number}", packed({**header, "__metadata__": meta}, data)
    for name, text in {
        "text": "text", "null": "null", "deep": "[" * 50_000, "nested": "[" * 900 + "]" * 900, "empty": "",
        "big": '{"width": ' + "9" * 5000 + "}", "twice": '{"width": 4, "width": 5}', "list": "[1]",
    }.items():  # fmt: skip
        for key in ("settings", "metadata"):
            meta = {**header["__metadata__"], key: text}
            yield "settings", f"{key} {name}", packed({**header, "__metadata__": meta}, data)


def _sparse(path: Path, size: int) -> None:
    """A file that says it is large and takes no room on the disk."""
    header, _ = good()
    first = next(name for name in header if name != "__metadata__")
    content = packed(
        {
            "__metadata__": header["__metadata__"],
            first: {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
        }
    )
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + size)


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def checkpoint(**changes: Any) -> dict[str, Any]:
    net = network()
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    return {"epoch": 1, "global_step": 4, "state_dict": state, "model_settings": net.settings, "config": {}, **changes}


def archive(instructions: bytes, *, compress: bool = False, **more: bytes) -> bytes:
    """What ``torch.save`` writes, around a pickle of one's own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", instructions)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
        for name, content in more.items():
            file.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def doubled(inner: bytes, times: int, *, final: bytes) -> bytes:
    """A pickle that puts a thing twice into a tuple, that tuple twice into the next one, and so on."""
    return b"\x80\x02" + inner + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(times)) + final


def _shared(depth: int) -> list[Any]:
    """Small in memory, and 2 ** depth values once it is written out."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


def checkpoint_files(rng: random.Random, canary: Path) -> Iterator[File]:
    whole = _saved(checkpoint())
    for number in range(8):
        yield "cut", f"cut {number}", whole[: len(whole) * number // 8]
    for number in range(25):
        spoiled = bytearray(whole)
        for _ in range(1 + number % 5):
            spoiled[rng.randrange(len(whole) // 4 if number % 2 else len(whole))] ^= 1 << rng.randrange(8)
        yield "bits flipped", f"flipped {number}", bytes(spoiled)
    for protocol in range(6):
        for name, payload in payloads(canary):
            yield "pickle", f"pickle {protocol} {name}", pickle.dumps(checkpoint(state_dict=payload), protocol)
            code = pickle.dumps({"state_dict": {}, "model_settings": payload}, protocol)
            yield "pickle", f"zip {protocol} {name}", archive(code)
    for name, payload in payloads(canary):
        yield "pickle", f"saved {name}", _saved(checkpoint(hyper_parameters=payload))
        stream = io.BytesIO()
        torch.save(checkpoint(callbacks=payload), stream, _use_new_zipfile_serialization=False)
        yield "pickle", f"legacy {name}", stream.getvalue()
    yield "pickle", "instance", archive(b"(S'mkdir " + str(canary / "inst").encode() + b"'\nios\nsystem\n.")
    for name, code in {
        "bytearray": b"cbuiltins\nbytearray\n\x8a\x06" + (10**13).to_bytes(6, "little") + b"\x85R",
        "tensor": b"ctorch\nTensor\n\x8a\x05" + (10**11).to_bytes(5, "little") + b"\x85R",
        "hex": b"c_codecs\nencode\nq\x00X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R"
        + b"".join(b"q\x01h\x00h\x01X\x03\x00\x00\x00hex\x86R" for _ in range(40)),
        "counter": b"ccollections\nCounter\nX\x01\x00\x00\x00a\x85R",
    }.items():
        yield "memory", name, archive(b"\x80\x02" + code + b".")
    yield "endless", "tuple as a name", archive(doubled(b")", 60, final=b"q\xf0}h\xf0K\x01s."))
    yield "endless", "deep tuple as a name", archive(b"\x80\x02)" + b"\x85" * 200_000 + b"q\xf0}h\xf0K\x01s.")
    for name in ("model_settings", "config", "epoch"):
        yield "endless", f"lists in {name}", _saved(checkpoint(**{name: {"width": _shared(60)}}))
    circle: list[Any] = []
    circle.append(circle)
    yield "endless", "circle", _saved(checkpoint(config={"a": circle}, model_settings={"width": circle}))
    yield from _archives(whole)
    yield from _contents()


def _archives(whole: bytes) -> Iterator[File]:
    bomb = b"\x80\x02" + b"]0" * (32 * 2**20 // 2) + b"."  # four times what is allowed
    yield "zip bomb", "structure", archive(bomb, compress=True)
    yield "zip bomb", "storage", archive(pickle.dumps({}, 2), compress=True, archive__data__0=bytes(32 * 2**20))
    yield "zip", "many entries", archive(pickle.dumps({}, 2), **{f"archive__data__{n}": b"" for n in range(20_000)})
    yield "zip", "no structure", archive(b"").replace(b"data.pkl", b"dada.pkl")
    yield "zip", "empty structure", archive(b"")
    yield "zip", "outside", archive(pickle.dumps({}, 2)).replace(b"archive/data.pkl", b"../../e/data.pkl")
    yield "zip", "script", archive(pickle.dumps({}, 2), archive__constants_pkl=b"x", archive__code__a_py=b"import os")
    place = whole.rindex(b"PK\x01\x02")
    yield "zip", "sizes lied about", whole[: place + 20] + b"\xff" * 8 + whole[place + 28 :]
    yield "zip", "comment", whole[:-2] + b"\xff\xff"
    yield "zip", "two in one", whole + archive(pickle.dumps({"state_dict": {}}, 2))


def _contents() -> Iterator[File]:
    """In order as files, and not what a checkpoint says."""
    meta = torch.zeros(3, device="meta")
    some = "net.stages.0.projection.bias"
    ones, state = torch.ones(2), checkpoint()["state_dict"]
    spoiled = [
        meta,
        torch.zeros(1).expand(10**9),
        torch.eye(3).to_sparse(),
        3,
        "x",
        torch.zeros(2**20, dtype=torch.int8),
    ]
    wrong: dict[str, list[Any]] = {
        "model_settings": [[1], None, 3, "x", ones, {1: 2}, {"width": ones}],
        "state_dict": [[1], None, ones, {}, {3: ones}, {("net.",): 1}, *({**state, some: value} for value in spoiled)],
        "config": [[1], None, 3, {"a": ones}, {1: {None: {}}}, {"a": [float("nan")]}],
        "epoch": [ones, "x", 2**2000],
    }
    for name, values in wrong.items():
        for number, value in enumerate(values):
            yield "content", f"{name} {number}", _saved(checkpoint(**{name: value}))
    whole = _saved({"state_dict": {"net.x": torch.zeros(1000)}, "model_settings": SETTINGS})
    count, key = b"M\xe8\x03", b"X\x03\x00\x00\x00cpu"
    for number, (old, new) in enumerate(
        [(count, b"M\xff\xff"), (count, b"K\x01"), (key, b"X\x03\x00\x00\x00xla"), (key, b"X\x03\x00\x00\x00gpu"),
         (b"FloatStorage", b"DoubleStorag"), (b"little", b"middle"), (b"K\x00M", b"K\x7fM"), (b"storage", b"module_")]
    ):  # fmt: skip
        if len(old) == len(new):
            yield "storage", f"storage {number}", whole.replace(old, new)
