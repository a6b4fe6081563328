"""`kiln report`: every section, in both languages, below 5 MB, of itself alone; and what it says when something is missing."""

from __future__ import annotations

import html
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import albums
import numpy as np
import pytest

import kiln
from kiln.errors import UsageError
from kiln.measure.saliency import saliency
from kiln.observe.outputs import KeptOutputs, SplitOutputs, read_outputs, write_outputs
from kiln.reports.run_page.material import Material
from kiln.reports.run_page.page import MOST_BYTES, report_page
from kiln.reports.run_page.pictures import Photographs

SECTIONS = {
    "headline", "data", "curves", "classes", "confusion", "errors", "slices", "calibration", "coverage", "suspects",
    "speed", "decided", "provenance",
}  # fmt: skip


class Texts(HTMLParser):
    """Text that people read: no code, no styles, no scripts, nothing marked as another language, no names."""

    VOID = frozenset({"meta", "br", "input", "image", "use", "path", "rect", "link", "img"})

    def __init__(self):
        super().__init__()
        self.texts, self._skipped = [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        skips = tag in ("code", "style", "script", "pre", "svg") or given.get("lang") == "en"
        if tag not in self.VOID:
            self._skipped.append(skips or (bool(self._skipped) and self._skipped[-1]))
        if given.get("aria-label"):
            self.texts.append(given["aria-label"])

    def handle_endtag(self, tag):
        if tag not in self.VOID and self._skipped:
            self._skipped.pop()

    def handle_data(self, data):
        if not (self._skipped and self._skipped[-1]):
            self.texts.append(data)


def texts_of(page):
    parser = Texts()
    parser.feed(page)
    return [text.strip() for text in parser.texts if text.strip()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    return albums.train(albums.split_folders(root / "photos"), root / "runs")


@pytest.fixture
def run(trained, tmp_path):
    return kiln.Run(shutil.copytree(trained.path, tmp_path / "run"))


def read(path):
    return Path(path).read_text(encoding="utf-8")


def test_the_page_has_every_section_and_loads_nothing(run):
    said = albums.command("report", run.path, "--json")
    assert said.status == 0, said.err
    page = read(said.json["file"])
    assert Path(said.json["file"]) == run.path / "report.html"
    assert said.json["bytes"] < MOST_BYTES
    assert set(re.findall(r'<section id="(\w+)"', page)) == SECTIONS
    assert '<html lang="en">' in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)\w", page)
    assert "@import" not in page
    metrics = run.result["metrics"]["test"]["accuracy"]
    assert f"{100 * metrics['value']:.1f}\u00a0%" in page
    assert "data:image/jpeg;base64," in page
    assert len(re.findall("<h1", page)) == 1
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_chinese_page_is_chinese(run):
    said = albums.command("--lang", "zh", "report", run.path, "--no-saliency")
    assert said.status == 0, said.err
    page = read(run.path / "report.html")
    assert '<html lang="zh-CN">' in page
    texts = texts_of(page)
    assert len(texts) > 150
    names = "|".join([*albums.CLASSES, "kiln calibrate", "kiln evaluate", r"resolved\.yaml", r"bad_files\.csv"])
    english = [text for text in texts if re.search("[A-Za-z]{2,} [A-Za-z]{2,}", re.sub(names, "", html.unescape(text)))]
    assert [text for text in english if str(run.path.parent) not in text and run.recipe.data.path not in text] == []


def test_a_word_of_english_would_be_found():
    assert texts_of(
        '<p>two words</p><code>not these</code><p lang="en">nor these</p><b aria-label="but this"></b>'
    ) == [
        "two words",
        "but this",
    ]


def test_the_split_and_the_file_are_the_users(run, tmp_path):
    path = kiln.report(run, output=tmp_path / "page.html", split="val", saliency=False)
    assert path == tmp_path / "page.html"
    assert "accuracy on validation" in read(path)
    assert not (run.path / "report.html").exists()


def test_bad_input(run, tmp_path):
    with pytest.raises(UsageError, match="measured no split 'tset'"):
        kiln.report(run, split="tset")
    with pytest.raises(UsageError, match="unknown language 'fr'"):
        kiln.report(run, lang="fr")
    with pytest.raises(UsageError, match="is no run folder"):
        kiln.report(tmp_path)
    (run.path / "result.json").unlink()
    with pytest.raises(UsageError, match="is not finished"):
        kiln.report(run)


def test_data_that_moved_leave_the_page_without_pictures(tmp_path):
    photos = albums.class_folders(tmp_path / "photos")
    run = albums.train(photos, tmp_path / "runs")
    photos.rename(tmp_path / "elsewhere")
    page = read(kiln.report(run))
    assert "There are no pictures: the data are no longer at" in page
    assert "data:image" not in page
    assert "There is no test split" in page
    assert set(re.findall(r'<section id="(\w+)"', page)) == SECTIONS


def test_a_run_without_outputs_says_so(run):
    (run.path / "outputs.safetensors").unlink()
    page = read(kiln.report(run))
    assert "The run kept no outputs of its model" in page
    assert set(re.findall(r'<section id="(\w+)"', page)) == SECTIONS


def test_labels_in_any_number(tmp_path):
    rows = [(path, f"{label};odd" if k % 2 else label) for k, (path, label) in enumerate(albums.flat_images(tmp_path))]
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    run = albums.train(table, tmp_path / "runs", overrides={"task.name": "multilabel", "task.separator": ";"})
    page = read(kiln.report(run))
    assert "given wrongly" in page
    assert "get all their labels right" in page
    assert set(re.findall(r'<section id="(\w+)"', page)) == SECTIONS


def material(folder, *, num, num_classes, source):
    """A run of many classes and many mistakes."""
    generator = np.random.Generator(np.random.Philox(1))
    targets = generator.integers(0, num_classes, num)
    logits = generator.normal(size=(num, num_classes)).astype(np.float32)
    keys = source.keys[:num]
    classes = tuple(f"class {k}" for k in range(num_classes))
    part = SplitOutputs(keys, tuple(classes[k] for k in targets), logits, targets)
    kept = KeptOutputs(classes, {"name": "classification"}, {}, "digest", {"test": part})
    write_outputs(folder / "outputs.safetensors", kept)
    right = float((logits.argmax(1) == targets).mean())
    accuracy = {"value": right, "low": 0.0, "high": 1.0, "n": num}
    return Material(
        "many", str(folder), {"metrics": {"test": {"accuracy": accuracy}}, "details": {"test": {}}},
        {"values": {}, "facts": {}}, {}, [], [], read_outputs(folder / "outputs.safetensors"), Photographs(source),
    )  # fmt: skip


class Noise:
    """A source of large images that compress badly."""

    def __init__(self, num):
        self.keys = tuple(f"{k:05d}" for k in range(num))

    def read(self, index):
        return np.random.Generator(np.random.Philox(index)).integers(0, 256, (160, 160, 3), np.uint8)


def test_a_thousand_mistakes_of_150_classes_stay_below_the_limit(tmp_path):
    page = report_page(material(tmp_path, num=1010, num_classes=150, source=Noise(1010)))
    assert len(page.encode()) < MOST_BYTES
    assert "Shown are the 20 classes with the most mistakes; 130 classes and" in page


def test_pictures_that_do_not_fit_are_counted(tmp_path):
    page = report_page(material(tmp_path, num=300, num_classes=2, source=Noise(300)), budget_bytes=60_000)
    left = re.search(r"(\d+) pictures were left out to keep this page", page)
    assert left
    shown = len(re.findall(r'<image id="p\d+"', page))
    assert shown > 10
    assert int(left[1]) > 0


@pytest.mark.parametrize(
    ("name", "side", "shape"),
    [("resnet18", 64, (4, 4)), ("vit_tiny_patch16_224", 64, (4, 4)), ("swin_tiny_patch4_window7_224", 224, (7, 7))],
)
def test_where_networks_look(name, side, shape):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    pytest.importorskip("captum")
    options = {} if "swin" in name or "resnet" in name else {"img_size": side}
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3, **options).eval()
    maps = saliency(network, torch.randn(2, 3, side, side), [0, 2])
    assert maps.shape == (2, *shape)
    assert maps.min() >= 0
    assert maps.max() == pytest.approx(1)


def test_what_spoke_for_an_answer_is_where_the_evidence_is():
    torch = pytest.importorskip("torch")
    pytest.importorskip("captum")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 1, 1, bias=False),
        torch.nn.AvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(2, bias=False),
    )
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 4:8, 24:28] = 1.0
    network(image)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[3].weight.fill_(0.0)
        network[3].weight[1].fill_(1.0)
    network.eval()
    found = saliency(network, image, [1])[0]
    assert np.unravel_index(found.argmax(), found.shape) == (1, 6)
    assert found.sum() == pytest.approx(1.0)
    assert saliency(network, image, [0]).max() == 0
