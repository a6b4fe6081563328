"""RELIABILITY N10: a model, the model read back, and its ONNX export agree on many images, in batches of one and more."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from kiln.deployment import export as export_module
from kiln.deployment.export import export_onnx
from kiln.errors import ArtifactError, UsageError
from kiln.jobs.export import export
from kiln.models.create import create_model
from kiln.models.modelfile import read_model, save_model
from kiln.pixels import PixelContract
from kiln.runtimes import load

TASK = {"name": "classification"}


def write(path, name, size, channels=3, num_classes=5, **arguments):
    created = create_model(name, num_classes=num_classes, channels=channels, img_size=size, **arguments)
    settle(created.model, channels, size)
    contract = PixelContract(size, size, channels=channels)
    classes = [f"class {index}" for index in range(num_classes)]
    save_model(path, created.model, spec=created.spec, classes=classes, contract=contract, task=TASK)
    return created


def settle(model, channels, size):
    """Give BatchNorm statistics that fit, and logits some spread, as training would."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of all batches seen, here one
    with torch.no_grad():
        model.train()(torch.randn(16, channels, size, size, generator=generator))
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * head.in_features**-0.5)
    model.eval()


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("kiln/small_cnn", 32, 3),
        pytest.param("resnet18", 64, 3, marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", 64, 3, marks=pytest.mark.slow),
        pytest.param("mobilenetv3_small_050", 64, 1, marks=pytest.mark.slow),
        pytest.param("convnext_atto", 64, 4, marks=pytest.mark.slow),
    ],
)
def test_torch_and_onnx_agree(tmp_path, name, size, channels):
    path = tmp_path / "model.safetensors"
    write(path, name, size, channels)
    exported = load(export(path), device="cpu")
    original = load(path, device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (512, channels, size, size), dtype=np.uint8)
    num_images = 512 if name == "kiln/small_cnn" else 64
    for start in range(0, num_images, 64):
        cut = images[start : start + 64]
        expected, found = original.logits(cut), exported.logits(cut)
        assert expected.std() > 1e-2
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        ordered = np.sort(expected, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 1e-3
        assert (found.argmax(1) == expected.argmax(1))[clear].all()
    np.testing.assert_allclose(exported.logits(images[:1]), original.logits(images[:1]), atol=1e-4, rtol=0)
    assert (exported.classes, exported.contract) == (original.classes, original.contract)


def test_the_file_stands_alone_and_names_no_paths(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, "kiln/small_cnn", 16)
    target = export(path, tmp_path / "out" / "digits.onnx", opset=18)
    assert [entry.name for entry in target.parent.iterdir()] == ["digits.onnx"]
    model = onnx.load(target, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18)}
    (images,) = model.graph.input
    shape = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, images.type.tensor_type.elem_type, shape[1:]) == (
        "images",
        onnx.TensorProto.UINT8,
        [3, 16, 16],
    )
    assert isinstance(shape[0], str)
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
    content = target.read_bytes()
    assert b"site-packages" not in content
    assert str(tmp_path).encode() not in content
    assert b".py" not in content
    again = export(path, tmp_path / "again.onnx", opset=18)
    assert again.read_bytes() == content


def test_auxiliary_heads_are_left_behind(tmp_path):
    code = tmp_path / "two.py"
    code.write_text(
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.main, self.aux = nn.Linear(48, num_classes), nn.Linear(48, num_classes)\n"
        "    def forward(self, x):\n"
        "        x = x.flatten(1)\n"
        "        return self.main(x), self.aux(x)\n"
    )
    name = f"{code}:Two"
    write(tmp_path / "m.safetensors", name, 4)
    target = export(tmp_path / "m.safetensors", trust=[name])
    images = np.zeros((2, 3, 4, 4), np.uint8)
    expected = load(tmp_path / "m.safetensors", trust=[name], device="cpu").logits(images)
    np.testing.assert_allclose(load(target, device="cpu").logits(images), expected, atol=1e-4)


def test_an_export_that_disagrees_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write(path, "kiln/small_cnn", 8)
    file = read_model(path)
    trace = export_module._trace

    def other(network, *arguments):
        with torch.no_grad():
            network.network.model.head.bias[0] += 0.5
            proto = trace(network, *arguments)
            network.network.model.head.bias[0] -= 0.5
        return proto

    monkeypatch.setattr(export_module, "_trace", other)
    with pytest.raises(ArtifactError, match=r"logits differ[\s\S]*at most 0.0001") as caught:
        export_onnx(file, tmp_path / "model.onnx")
    assert caught.value.code == "E305"
    assert not (tmp_path / "model.onnx").exists()


def test_wrong_requests_are_explained(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, "kiln/small_cnn", 8)
    with pytest.raises(UsageError, match=r"unknown export format 'tflite'[\s\S]*onnx"):
        export(path, format="tflite")
    with pytest.raises(UsageError, match=r"ends in .onnx"):
        export(path, tmp_path / "model.bin")
    with pytest.raises(UsageError, match=r"opset = 3: the exporter wrote opset \d+ instead"):
        export(path, opset=3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
