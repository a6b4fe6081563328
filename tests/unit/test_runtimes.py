"""Predictors: what they accept, what they answer, what they refuse; exported files that would reach outside."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from kiln.errors import ArtifactError, DataError, KilnError, SecurityError, UsageError
from kiln.jobs.export import export
from kiln.models.create import create_model
from kiln.models.modelfile import ModelFile, save_model
from kiln.models.normalize import Normalized
from kiln.models.seal import OPEN_SEAL, seal
from kiln.pixels import PixelContract
from kiln.runtimes import load, model_path
from kiln.runtimes.onnx import KIND, OnnxRuntime
from kiln.runtimes.torch import TorchRuntime

CLASSES = ("cat", "dog", "eel")
SIZE = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with a small model, and its export beside it."""
    folder = tmp_path_factory.mktemp("run")
    made = create_model("kiln/small_cnn", num_classes=3, img_size=SIZE, kwargs={"widths": [4, 8]}, seed=1)
    contract = PixelContract(SIZE, SIZE)
    task = {"name": "classification"}
    save_model(folder / "model.safetensors", made.model, spec=made.spec, classes=CLASSES, contract=contract, task=task)
    export(folder)
    return folder


@pytest.fixture(params=["model.safetensors", "model.onnx"])
def predictor(run, request):
    return load(run / request.param, device="cpu")


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png", pixels


def test_every_form_of_an_image_gets_the_same_answer(predictor, picture):
    path, pixels = picture
    forms = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), pixels, Image.open(path)]
    answers = [predictor.predict(form, top_k=2) for form in forms]
    assert [len(answer) for answer in answers] == [1] * len(forms)
    assert len({answer[0] for answer in answers}) == 1
    first = answers[0][0]
    assert first.error == ""
    assert first.top[0] == (first.label, first.probability)
    assert len(first.top) == 2
    two = predictor.predict(np.stack([pixels, pixels]), top_k=2)
    assert [answer.label for answer in two] == [first.label] * 2
    assert two[0].probability == two[1].probability == pytest.approx(first.probability, abs=1e-6)
    assert predictor.predict([]) == []


def test_answers_are_the_networks_own(run, picture):
    path, _ = picture
    made = create_model("kiln/small_cnn", num_classes=3, img_size=SIZE, kwargs={"widths": [4, 8]}, seed=1)
    pixels = torch.from_numpy(PixelContract(SIZE, SIZE).apply(path.read_bytes())).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = Normalized(made.model.eval(), made.spec.mean, made.spec.std)(pixels)
    probabilities = logits.double().softmax(1)[0]
    answer = load(run, device="cpu").predict(path)[0]
    assert answer.label == CLASSES[int(probabilities.argmax())]
    assert answer.probability == pytest.approx(float(probabilities.max()), abs=1e-12)


def test_bad_files_are_answers_with_a_reason_and_spoil_nobody_elses(predictor, picture, tmp_path):
    path, _ = picture
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>")
    images = [path, tmp_path / "empty.jpg", tmp_path / "missing.jpg", tmp_path, tmp_path / "page.jpg", path]
    answers = predictor.predict(images, batch_size=4)
    assert [answer.error.partition(":")[0] for answer in answers] == [
        "", "empty", "unreadable", "unreadable", "not_an_image", "",
    ]  # fmt: skip
    assert answers[1].top == answers[1].labels == ()
    np.testing.assert_allclose(answers[0].probability, answers[5].probability, rtol=1e-6)
    with pytest.raises(DataError, match=r"empty[\s\S]*where: .*empty.jpg") as caught:
        predictor.predict(images, on_error="raise")
    assert caught.value.code == "E202"


def test_the_same_batches_give_the_same_bits(predictor):
    images = list(np.random.default_rng(1).integers(0, 256, (11, 24, 24, 3), dtype=np.uint8))
    assert predictor.predict(images, batch_size=4) == predictor.predict(images, batch_size=4)
    for size in (1, 3, 32):
        for one, other in zip(
            predictor.predict(images, batch_size=4), predictor.predict(images, batch_size=size), strict=True
        ):
            assert one.probability == pytest.approx(other.probability, abs=1e-6)


def test_answers_come_in_order_and_one_batch_at_a_time(predictor):
    taken = []

    def images():
        for value in range(10):
            taken.append(value)
            yield np.full((SIZE, SIZE, 3), 25 * value, np.uint8)

    stream = predictor.stream(images(), batch_size=3)
    next(stream)
    assert taken == [0, 1, 2]
    assert len(list(stream)) == 9


def test_wrong_calls_are_explained(predictor):
    with pytest.raises(UsageError, match=r"images are float32[\s\S]*uint8 of shape \(B, 3, 16, 16\)"):
        predictor.logits(np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(UsageError, match=r"shape \(1, 16, 16, 3\)"):
        predictor.logits(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(UsageError, match="top_k = 0"):
        predictor.predict([], top_k=0)
    with pytest.raises(UsageError, match=r"on_error = 'skip'[\s\S]*keep, raise"):
        predictor.predict([], on_error="skip")
    assert predictor.logits(np.zeros((0, 3, 16, 16), np.uint8)).shape == (0, 3)
    assert "3 classes, 16x16 px" in repr(predictor)


def test_what_load_refuses(run, tmp_path):
    with pytest.raises(UsageError, match=r"^there is no "):
        load(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"holds no model.safetensors[\s\S]*the folder of a run"):
        model_path(tmp_path)
    with pytest.raises(UsageError, match=r"unknown runtime 'tensorflow'[\s\S]*torch, onnx"):
        load(run, runtime="tensorflow")
    with pytest.raises(UsageError, match=r"runtime 'onnx' does not read model.safetensors[\s\S]*kiln export"):
        load(run, runtime="onnx")
    with pytest.raises(UsageError, match=r"does not read model\.onnx"):
        load(run / "model.onnx", runtime="torch")
    with pytest.raises(UsageError, match=r"device = 'xpu'[\s\S]*choices: cpu"):
        load(run / "model.onnx", device="xpu")


def test_an_onnx_predictor_imports_neither_torch_nor_timm(run):
    code = f"""
import sys, numpy
import kiln
answer = kiln.load({str(run / "model.onnx")!r}).predict(numpy.zeros((20, 20, 3), numpy.uint8))
sys.exit(any(name in sys.modules for name in ("torch", "timm", "torchvision")) or len(answer) != 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_runtime_takes_a_model_in_memory(run):
    made = create_model("kiln/small_cnn", num_classes=3, img_size=SIZE, kwargs={"widths": [4, 8]}, seed=1)
    file = ModelFile(made.model, made.spec, CLASSES, PixelContract(SIZE, SIZE), {"name": "classification"})
    images = np.random.default_rng(2).integers(0, 256, (2, 3, SIZE, SIZE), dtype=np.uint8)
    stored = load(run, device="cpu").logits(images)
    np.testing.assert_array_equal(TorchRuntime(file, device="cpu").logits(images), stored)


# --- exported files that lie or reach outside -------------------------------------------------------------------------


def test_a_damaged_export_is_noticed(run, tmp_path):
    sound = (run / "model.onnx").read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for place in [0, len(sound) - 1, *generator.integers(0, len(sound), 200)]:
        damaged = bytearray(sound)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(KilnError) as caught:
            OnnxRuntime(path, device="cpu")
        assert caught.value.code in ("E303", "E307", "E701", "E703"), place
    path.write_bytes(sound[:-100])
    with pytest.raises(ArtifactError):
        OnnxRuntime(path, device="cpu")


def graph(nodes, initializers=()):
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    return helper.make_graph(nodes, "g", [images], [logits], list(initializers))


def description(**changes):
    header = {"kind": KIND, "version": 1, "seal": OPEN_SEAL, "classes": list(CLASSES)}
    return {**header, "contract": PixelContract(SIZE, SIZE).to_dict(), "task": {"name": "classification"}, **changes}


def write_onnx(path, model, header):
    if header is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = "kiln", json.dumps(header)
    payload = model.SerializeToString()
    path.write_bytes(seal(payload)[0] if OPEN_SEAL.encode() in payload else payload)
    return path


def cast_and_mean():
    nodes = [helper.make_node("Cast", ["images"], ["f"], to=TensorProto.FLOAT)]
    return [*nodes, helper.make_node("ReduceMean", ["f", "axes"], ["logits"], keepdims=0)]


AXES = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])


def make(nodes=None, initializers=(AXES,), domains=()):
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph(nodes or cast_and_mean(), initializers), opset_imports=opsets, ir_version=9)


def test_an_honest_small_graph_runs(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", make(), description())
    images = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE), dtype=np.uint8)
    np.testing.assert_allclose(load(path, device="cpu").logits(images), images.mean((2, 3)), rtol=1e-5)


def test_external_data_is_refused_wherever_it_hides(tmp_path):
    outside = TensorProto(name="axes", data_type=TensorProto.INT64, dims=[2], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../../secret")
    constant = helper.make_node("Constant", [], ["axes"], value=outside)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("axes", TensorProto.INT64, [2])])
    branch = helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner)
    for model in (
        make(initializers=(outside,)),
        make([constant, *cast_and_mean()], ()),
        make([branch, *cast_and_mean()]),
    ):
        path = write_onnx(tmp_path / "m.onnx", model, description())
        with pytest.raises(SecurityError, match=r"keeps the tensor 'axes' in another file: '../../secret'") as caught:
            load(path)
        assert caught.value.code == "E703"


@pytest.mark.parametrize("domain", ["com.microsoft", "evil"])
def test_operators_outside_the_standard_are_refused(tmp_path, domain):
    custom = helper.make_node("Gelu", ["f"], ["logits"], domain=domain)
    path = write_onnx(tmp_path / "m.onnx", make([*cast_and_mean()[:1], custom], domains=[domain]), description())
    with pytest.raises(SecurityError, match=rf"operator {domain}:Gelu") as caught:
        load(path)
    assert caught.value.code == "E701"


@pytest.mark.parametrize(
    ("header", "code", "message"),
    [
        (None, "E303", "carries no description by Kiln"),
        (description(version=2), "E303", "version 2; this Kiln reads 1"),
        (description(kind="other"), "E303", "no description"),
        (description(classes="abc"), "E303", "lacks classes"),
        (description(task={"name": "os:system"}), "E303", "task 'os:system'"),
        (description(contract={"version": 7}), "E303", "pixel contract of version 7"),
        (description(seal="none"), "E307", "lost its digest"),
    ],
)
def test_exports_with_another_description_are_refused(tmp_path, header, code, message):
    path = write_onnx(tmp_path / "m.onnx", make(), header)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(path)
    assert caught.value.code == code


def test_what_is_not_onnx_is_refused(tmp_path):
    for content in (b"", b"\0" * 100, b"<html>"):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ArtifactError):
            load(tmp_path / "m.onnx")


def test_pictures_in_memory_keep_their_orientation(predictor):
    pixels = np.random.default_rng(3).integers(0, 256, (18, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    turned = np.rot90(pixels, -1)
    answers = [
        predictor.predict(form)[0] for form in (buffer.getvalue(), Image.open(buffer), np.ascontiguousarray(turned))
    ]
    assert answers[0] == answers[1] == answers[2]
