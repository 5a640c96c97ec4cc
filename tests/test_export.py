"""Exported models: one file, PyTorch's result at many sizes, in standard operators, or a clear refusal."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from opir_lightning import export
from opir_lightning.checkpoints import load_model, save_weights
from opir_lightning.data.sources import EMBEDDED
from opir_lightning.errors import UserError
from opir_lightning.models import OPIR, degradation_code, image_statistics
from opir_lightning.models.degradation_code import crops_of_open_size, native_crops
from opir_lightning.models.image_statistics import halve
from opir_lightning.onnx_file import OPSET
from opir_lightning.ops.operator_conv import decomposition, operator_conv
from opir_lightning.ops.predict_and_apply import decomposition as fused_decomposition
from opir_lightning.ops.predict_and_apply import predict_and_apply

TINY = Path(__file__).parents[1] / "conf" / "model" / "opir_tiny.yaml"
PADDINGS = ("reflect", "zeros", "replicate")
# One crop and sixteen; multiples of the stride, 8, and others; from the smallest side on.
SIZES = [(64, 64), (65, 300), (96, 128), (131, 77), (200, 333)]


SMALLER = {
    "width": 8,
    "encoder_blocks": [1],
    "middle_blocks": 0,
    "decoder_blocks": [0],
    "unshuffle": 4,
    "features": 8,
    "dilations": [1, 4],
}


def tiny(*, whole: bool = False, seed: int = 1) -> OPIR:
    """opir_tiny, or with fewer layers and dilations, every parameter moved away from its special start.

    Otherwise operator and code would not matter. The stride, 8, is that of the whole one.
    """
    settings = yaml.safe_load(TINY.read_text()) | ({} if whole else SMALLER)
    del settings["_target_"]
    torch.manual_seed(0)
    net = OPIR(**{**settings, "tasks": ["none", "noise", "rain", "haze", "blur", "low_light"], "code_crop": 64})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return net.eval()


def fewer_statistics(patch: pytest.MonkeyPatch) -> None:
    """Some of each kind of the numbers that tell the degradation: they are most of what is traced."""
    for name, some in {"_LAGS": (1, 8), "_POWERS": (-2.0, 0.5)}.items():
        patch.setattr(image_statistics, name, some)
    count = image_statistics.image_statistics(torch.rand(1, 3, 64, 64)).shape[1]
    patch.setattr(degradation_code, "STATISTICS", count)


class Exported(NamedTuple):
    net: OPIR
    program: torch.export.ExportedProgram  # as it was traced
    loaded: torch.export.ExportedProgram  # as it was read from what the file holds
    onnx: Path
    torch: Path
    said: str


@pytest.fixture(scope="module", params=["smaller", pytest.param("opir_tiny", marks=pytest.mark.slow)])
def exported(request, tmp_path_factory) -> Iterator[Exported]:
    """Both files, from a single tracing: that and the translation are what takes time, and it grows with the graph."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "smaller":
            fewer_statistics(patch)
        yield both_files(request.param, tmp_path_factory)


def both_files(kind_of_net: str, tmp_path_factory) -> Exported:
    folder, net = tmp_path_factory.mktemp("export"), tiny(whole=kind_of_net == "opir_tiny")
    weights = folder / "model.safetensors"
    save_weights(weights, net)
    program = export.export_program(net)
    loaded, said, load = [], [], torch.export.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_program", lambda model: program)
        patch.setattr(torch.export, "load", lambda file: loaded.append(load(file)) or loaded[0])
        patch.setattr("builtins.print", lambda *text, **_: said.append(" ".join(map(str, text))))
        for kind, name in (("torch", "net.pt2"), ("onnx", "net.onnx")):
            arguments = ["--weights", str(weights), "--format", kind, "-o", str(folder / "new" / name)]
            assert export.main(arguments) == 0, said
    return Exported(net, program, loaded[0], folder / "new" / "net.onnx", folder / "new" / "net.pt2", "\n".join(said))


@pytest.fixture(scope="module")
def session(exported):
    return export.onnx_session(exported.onnx)


def pictures(height: int, width: int) -> dict[str, torch.Tensor]:
    """Noise, and a photograph in 8 bits: many of its differences lie right on a threshold of the statistics."""
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    with Image.open(EMBEDDED / "train" / "wine.jpg") as opened:
        pixels = np.asarray(opened)[:height, :width]
    return {"noise": noise, "photograph": torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255}


def assert_same(net: OPIR, image: torch.Tensor, got: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        want = net(image)._asdict()
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].shape == value.shape
        assert export.deviation(name, got[name], value) <= 1e-4, name


# ---------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_onnxruntime_gives_what_pytorch_gives(exported, session, height, width):
    for image in pictures(height, width).values():
        values = session.run(None, {"image": image.numpy()})
        names = [output.name for output in session.get_outputs()]
        assert_same(exported.net, image, dict(zip(names, map(torch.from_numpy, values), strict=True)))


@pytest.mark.slow  # an export, half a minute; the small one above takes the same paths
@pytest.mark.parametrize("name", ["opir_tiny", "opir_small"])
def test_packaged_weights_give_the_same_on_photographs_of_three_sizes(name, tmp_path):
    net = load_model(name)[0].eval()
    assert export.export_onnx(net, tmp_path / "net.onnx") <= 1e-4
    session = export.onnx_session(tmp_path / "net.onnx")
    for photograph, height, width in [("bridge", 64, 64), ("friends", 450, 532), ("aitzgorri", 321, 481)]:
        with Image.open(EMBEDDED / "heldout" / f"{photograph}.jpg") as opened:
            pixels = np.asarray(opened)[:height, :width]
        for levels in (pixels, pixels // 16):  # as it is, and as dark as where much has to be done
            image = torch.from_numpy(levels.copy()).permute(2, 0, 1)[None].float() / 255
            values = session.run(export.OUTPUTS, {"image": image.numpy()})
            assert_same(net, image, dict(zip(export.OUTPUTS, map(torch.from_numpy, values), strict=True)))


def test_a_deviation_is_absolute_of_pictures_and_relative_of_large_logits():
    wanted = torch.tensor([-400.0, 0.5])
    for as_given in (lambda x: x, torch.Tensor.numpy):
        got, want = as_given(wanted + torch.tensor([0.0, 0.125])), as_given(wanted)
        assert export.deviation("refined", got, want) == 0.125
        assert export.deviation("task_logits", got, want) == pytest.approx(0.125 / 400)
        assert export.deviation("task_logits", got / 1000, want / 1000) == pytest.approx(0.125 / 1000)
        assert math.isnan(export.deviation("task_logits", got * float("nan"), want))


def test_the_readmes_example_runs_as_printed(exported, tmp_path, monkeypatch):
    section = (Path(__file__).parents[1] / "README.md").read_text().split("\n## Export\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(example.splitlines()) <= 15
    assert "opir_lightning" not in example  # its point is to need no more than the file
    monkeypatch.chdir(tmp_path)
    Path("opir.onnx").symlink_to(exported.onnx)
    photograph = Image.open(EMBEDDED / "heldout" / "bridge.jpg").crop((0, 0, 150, 101))
    photograph.save("rainy.jpg")
    exec(compile(example, "README.md", "exec"), {})
    with Image.open("rainy.jpg") as given, Image.open("restored.png") as restored:
        image = torch.from_numpy(np.array(given)).permute(2, 0, 1)[None].float() / 255
        got = torch.from_numpy(np.array(restored)).permute(2, 0, 1)[None]
    with torch.no_grad():
        want = exported.net(image).refined.clamp(0, 1) * 255
    assert (got - want).abs().max() <= 0.5 + 1e-2  # rounded to 8 bits, and not more


def test_the_result_that_is_compared_depends_on_the_operator_and_on_the_code(exported):
    """What the comparison is worth: an export that left one of them out would differ by far more than it allows."""
    image = pictures(96, 128)["photograph"]
    with torch.no_grad():
        restored, code = exported.net(image), exported.net.estimate_code(image)
        other = exported.net(image, code._replace(task=code.task.flip(1)))
    assert (restored.refined - restored.coarse).abs().max() > 0.01
    assert (restored.refined - other.refined).abs().max() > 0.01


def test_the_onnx_file_has_standard_operators_open_sizes_and_its_settings(exported):
    import onnx

    model = onnx.load(exported.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert len(model.graph.node) < 2000
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "image": [1, 3, "height", "width"],
        "coarse": [1, 3, "height", "width"],
        "uncertainty": [1, 1, "height", "width"],
        "refined": [1, 3, "height", "width"],
        "task_logits": [1, 6],
    }
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata["settings"] == exported.net.settings
    assert metadata["tasks"] == list(exported.net.tasks)
    assert metadata["tolerance"] == export.TOLERANCE == 1e-4
    assert metadata["smallest_side"] == 64
    assert str(Path(export.__file__).parent).encode() not in exported.onnx.read_bytes()


def test_the_torch_program_keeps_the_operator_and_gives_the_same(exported):
    graphs = [module.graph for module in exported.loaded.graph_module.modules() if hasattr(module, "graph")]
    targets = [str(node.target) for graph in graphs for node in graph.nodes]
    assert [name for name in targets if "opir" in name] == ["opir_lightning.predict_and_apply.default"] * 2
    run = exported.loaded.module()
    for height, width in [(64, 72), (131, 77)]:
        image = pictures(height, width)["photograph"]
        with torch.no_grad():
            assert_same(exported.net, image, run(image))
    with zipfile.ZipFile(exported.torch) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(export.EXTRA_FILE))
        assert json.loads(archive.read(name))["settings"] == exported.net.settings


def test_a_picture_below_the_smallest_side_is_refused_and_not_restored_wrongly(exported, session):
    program = exported.loaded.module()
    for size in [(63, 200), (200, 63), (40, 40)]:
        image = torch.rand(1, 3, *size)
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, {"image": image.numpy()})
        with pytest.raises(Exception, match="64"):
            program(image)


def test_the_command_says_how_large_the_difference_was(exported):
    for name in ("net.onnx", "net.pt2"):
        assert f"{name}: differs from PyTorch by at most" in exported.said
    assert "takes pictures from 64x64 pixels" in exported.said


def test_an_export_that_differs_replaces_nothing(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "export_program", lambda model: exported.program)
    monkeypatch.setattr(export, "to_onnx", lambda *_: exported.onnx.read_bytes())
    monkeypatch.setattr(torch.export, "save", lambda program, file, **_: file.write(exported.torch.read_bytes()))
    monkeypatch.setattr(torch.export, "load", lambda file: exported.loaded)
    for write in (export.export_onnx, export.export_torch):
        path = tmp_path / "net"
        path.write_text("earlier")
        with pytest.raises(UserError, match=r"'coarse' differs from PyTorch by .* and 1e-04 is allowed"):
            write(tiny(seed=2), path)
        assert path.read_text() == "earlier"
        assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------- mistakes of the user


def refused(capsys, *arguments: object) -> str:
    assert export.main([str(argument) for argument in arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_mistakes_are_one_sentence_and_status_one(capsys, tmp_path, monkeypatch):
    weights = tmp_path / "model.safetensors"
    save_weights(weights, tiny())
    before = weights.read_bytes()
    assert "There is no weights file" in refused(capsys, "--weights", tmp_path / "no.ckpt", "-o", tmp_path / "a.onnx")
    assert "is a folder" in refused(capsys, "--weights", weights, "-o", tmp_path)
    assert "overwrite the weights" in refused(capsys, "--weights", weights, "-o", weights)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = refused(capsys, "--weights", weights, "-o", tmp_path / "a.onnx")
    assert "needs onnxscript: pip install 'opir-lightning[onnx]'" in said
    assert [path.name for path in tmp_path.iterdir()] == [weights.name]
    assert weights.read_bytes() == before


def test_wrong_usage_is_status_two(capsys):
    for arguments in (["-o", "a.onnx"], ["--weights", "a", "-o", "b", "--format", "tflite"]):
        with pytest.raises(SystemExit) as leaving:
            export.main(arguments)
        assert leaving.value.code == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom opir_lightning.export import main\n"
        "try: main(['--help'])\nexcept SystemExit as leaving: status = leaving.code\n"
        "print(status, [m for m in ('torch', 'onnx', 'onnxruntime', 'lightning', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


# --------------------------------------------------------------------------------- the operators in standard operations


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("G", [1, 3])
@pytest.mark.parametrize("K", [1, 3, 5])
@pytest.mark.parametrize("dilations", [(1,), (3,), (1, 2, 4)])
def test_the_decomposition_is_the_operator(padding, G, K, dilations):
    """Down to a single pixel: the margin, up to 8, is many times the picture, and reflection repeats."""
    generator = torch.Generator().manual_seed(0)
    for H, W in [(1, 1), (1, 6), (2, 3), (5, 4), (9, 13)]:
        image = torch.rand(2, 3, H, W, generator=generator, dtype=torch.float64)
        taps = torch.randn(2, G * K * K, H, W, generator=generator, dtype=torch.float64)
        want = operator_conv(image, taps, dilations=dilations, padding=padding, backend="reference")
        got = decomposition.decomposed(image, taps, dilations, padding, G)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("G", "offsets"), [(1, False), (3, True)])
def test_the_decomposition_of_the_fused_operator_is_the_operator(G, offsets):
    generator = torch.Generator().manual_seed(0)
    B, F_, K, dilations = 2, 4, 3, [1, 3]
    N = G * K * K + (3 if offsets else 0)
    image, features, weight, bias, mix = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((B, 3, 6, 7), (B, F_, 6, 7), (B, N, F_), (B, N), (B, 2, 3))
    )
    options = {"kernel_size": K, "groups": G, "dilations": dilations, "padding": "reflect"}
    want = predict_and_apply(image, features, weight, bias, mix, **options, backend="reference")
    got = fused_decomposition.decomposed(image, features, weight, bias, mix, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_decompositions_sum_in_float32_and_keep_the_dtype_of_the_picture():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 8, 9, generator=generator).bfloat16()
    taps = torch.randn(1, 75, 8, 9, generator=generator).bfloat16()
    want = operator_conv(image, taps, dilations=(1, 2), backend="reference")
    got = decomposition.decomposed(image, taps, [1, 2], "reflect", 3)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want.float()).norm() / want.float().norm() < 1e-4  # summed in bfloat16: 1e-2


def test_a_program_with_open_sizes_is_rewritten_to_standard_operations_of_any_size():
    class Apply(torch.nn.Module):
        def forward(self, image, taps):
            return operator_conv(image, taps, dilations=(1, 4))

    size = {2: torch.export.Dim("height", min=1), 3: torch.export.Dim("width", min=1)}
    example = torch.rand(1, 3, 7, 9), torch.rand(1, 27, 7, 9)
    program = torch.export.export(Apply(), example, dynamic_shapes=(size, size), strict=False)
    assert "opir_lightning" in str(program.graph)
    program = program.run_decompositions(export.decompositions())
    assert "opir_lightning" not in str(program.graph)
    rewritten = program.module()
    for H, W in [(1, 1), (1, 5), (3, 2), (12, 31)]:
        image, taps = torch.rand(1, 3, H, W), torch.randn(1, 27, H, W)
        want = operator_conv(image, taps, dilations=(1, 4), backend="reference")
        torch.testing.assert_close(rewritten(image, taps), want, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------- the code at an open size


@pytest.mark.parametrize(("side", "per_side"), [(16, 4), (16, 1), (20, 2), (17, 5), (16, 3)])
def test_crops_of_open_size_are_the_crops(side, per_side):
    """Every length from the smallest to beyond the one from which all crops are taken, along both axes."""
    for length in range(side, (per_side + 2) * side + 9):
        for height, width in ((length, side + 3), (side, length)):
            image = torch.arange(height * width).float().view(1, 1, height, width).expand(2, 3, -1, -1)
            want, count = native_crops(image, side, per_side)
            crops, weights = crops_of_open_size(image, side, per_side)
            assert crops.shape == (2 * per_side**2, 3, side, side)
            used = weights > 0
            torch.testing.assert_close(weights[used], torch.full((count,), 1 / count))
            got = crops.unflatten(0, (per_side**2, 2))[used].flatten(0, 1)
            assert torch.equal(got, want), (height, width)


def test_halving_is_average_pooling_bit_for_bit():
    """What was trained with one must be used with the same: some of its results decide at a threshold."""
    for height, width in [(64, 64), (33, 50), (15, 2), (3, 7)]:
        x = torch.rand(3, 1, height, width, generator=torch.Generator().manual_seed(0))
        assert torch.equal(halve(x), F.avg_pool2d(x, 2))
