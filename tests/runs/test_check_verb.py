"""`kiln check` from outside: planted faults, its page and table, and a training that applies what was decided."""

import csv
import re
from html.parser import HTMLParser

import pytest
from albums import FLAGS, command, spoil

import kiln
from kiln.run import Run
from pictures import ALTERED, jpeg_of, picture, png_of, put


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Splits with one of each fault; `<b>` in a name must not become markup."""
    root = tmp_path_factory.mktemp("data") / "my photos"
    files = {f"{side}/{name}/{n}{name}.jpg": jpeg_of(picture(1000 * k + n)) for k, (side, name, num) in enumerate([
        ("train", "cat", 12), ("train", "dog", 12), ("train", "eel", 11), ("val", "cat", 4), ("val", "dog", 4)
    ]) for n in range(num)}  # fmt: skip
    files["val/cat/exact.jpg"] = files["train/cat/0cat.jpg"]
    files["train/dog/<b>near.jpg"] = ALTERED["crop"](picture(1001))
    files["train/dog/conflict.jpg"] = files["train/cat/3cat.jpg"]
    files["train/eel/cut.jpg"] = jpeg_of(picture(5000))
    put(root, files)
    spoil(root / "train/eel/cut.jpg")
    return root


@pytest.fixture(scope="module")
def checked(faulty, tmp_path_factory):
    output = tmp_path_factory.mktemp("checked")
    return command("check", faulty, "--output", output, "-j", "2"), output


def rows_of(output):
    with open(output / "check.csv", encoding="utf-8", newline="") as file:
        assert file.readline() == '# {"kind": "kiln.check", "version": 1}\n'
        return list(csv.DictReader(file))


def test_planted_faults_are_found_and_nothing_else(checked):
    said, output = checked
    assert said.status == 0
    found = {(row["finding"], row["key"], row["decision"]) for row in rows_of(output)}
    assert found == {
        ("unreadable", "train/eel/cut.jpg", "drop"),
        ("conflict", "train/cat/3cat.jpg", "drop"), ("conflict", "train/dog/conflict.jpg", "drop"),
        ("duplicate_across", "train/cat/0cat.jpg", "drop"), ("duplicate_across", "val/cat/exact.jpg", "keep"),
        ("near_duplicate", "train/dog/1dog.jpg", "keep"), ("near_duplicate", "train/dog/<b>near.jpg", "keep"),
    }  # fmt: skip


def test_the_table_on_the_terminal_names_each_kind(checked):
    said, output = checked
    kinds = re.findall(r"^(\w+) +(\d+)  (serious|warning|info) ", said.out, re.MULTILINE)
    assert kinds == [
        ("unreadable", "1", "serious"), ("conflict", "1", "serious"), ("duplicate_across", "1", "serious"),
        ("class_missing", "1", "serious"), ("near_duplicate", "1", "warning"),
    ]  # fmt: skip
    assert "'eel' is missing from val: it occurs in train only" in said.out
    assert re.search(r"^images 47 \(train 38, val 9\), looked at in \d+ s$", said.out, re.MULTILINE)
    assert said.out.splitlines()[-1] == f"table  {output / 'check.csv'}"


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_its_pictures_and_asks_nothing_of_the_network(checked):
    text = (checked[1] / "check.html").read_text(encoding="utf-8")
    page = Page(text)
    pictures = [link for link in page.links if link.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 6
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"script", "link", "iframe", "b>near.jpg"} & set(page.tags)
    assert "train/dog/<b>near.jpg" in "".join(page.text)
    assert "<b>near" not in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_json_says_the_same(faulty):
    said = command("check", faulty, "--json", "-j", "1")
    assert said.status == 0
    assert said.json["counts"] == {
        "unreadable": 1, "conflict": 1, "duplicate_across": 1, "class_missing": 1, "near_duplicate": 1
    }  # fmt: skip
    assert (said.json["usable"], said.json["serious"], said.json["output"]) == (True, True, None)


def test_decisions_are_applied_by_check_train_evaluate_and_resume(faulty, checked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = checked[1] / "check.csv"
    again = command("check", faulty, "--decisions", table, "--json")
    assert again.json["counts"] == {"class_missing": 1, "near_duplicate": 1, "note": 1}
    assert again.json["samples"] == 43

    said = command("train", faulty, *FLAGS, "--decisions", table, "--name", "clean")
    assert said.status == 0, said.err
    assert re.search(r"note +\S*check.csv: 4 samples dropped, 1 group held together", said.out)
    assert "exact copies" not in said.out
    split = (tmp_path / "runs/clean/split.csv").read_text(encoding="utf-8")
    assert "conflict.jpg" not in split
    assert len(split.splitlines()) == 43 + 2
    result = command("evaluate", "runs/clean", "--split", "val", "--json")
    assert result.status == 0, result.err
    recorded = Run("runs/clean").recipe
    assert recorded.data.decisions == str(table)
    longer = command("resume", "runs/clean", "--extend", "1ep")
    assert longer.status == 0, longer.err

    table.write_text(table.read_text(encoding="utf-8").replace(",drop,", ",keep,", 1), encoding="utf-8")
    refused = command("resume", "runs/clean", "--extend", "2ep")
    assert refused.status == 3
    assert "the data changed since the run began" in refused.err


def test_training_warns_of_exact_copies_across_splits(faulty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("train", faulty, *FLAGS)
    assert (
        "2 files are exact copies in several splits, which makes the numbers too good: 'train/cat/0cat.jpg'" in said.out
    )
    assert "2 files have the same bytes under several labels: 'train/cat/3cat.jpg'" in said.out
    assert f"to see them: kiln check '{faulty}' --output FOLDER" in said.out
    assert said.out.count("missing from val") == 1


def test_data_without_splits_are_split_as_training_would(tmp_path):
    put(
        tmp_path,
        {f"{name}/{n}.jpg": jpeg_of(picture(100 * k + n, (40, 40))) for k, name in enumerate("ab") for n in range(20)},
    )
    found = kiln.check(tmp_path, workers=1)
    assert sum(found.sizes.values()) == 40
    assert set(found.sizes) == {"train", "val"}
    assert not found.serious
    assert found.usable


def test_a_wrong_table_is_shown_and_leaves_3(tmp_path):
    put(tmp_path, {"x.png": png_of(picture(1))})
    (tmp_path / "labels.csv").write_text("path,label\nx.png,a\nmissing.png,b\n")
    said = command("check", tmp_path / "labels.csv", "--output", tmp_path / "out")
    assert said.status == 3
    assert "cannot be used as it is" in said.err
    assert "no file 'missing.png'" in said.err
    assert "missing.png" in (tmp_path / "out/check.html").read_text()


def test_missing_labels_are_rows_of_the_table(tmp_path):
    put(tmp_path, {f"{n}.png": png_of(picture(n)) for n in range(6)})
    (tmp_path / "labels.csv").write_text(
        "path,label\n" + "".join(f"{n}.png,{'ab'[n % 2] if n else ''}\n" for n in range(6))
    )
    found = kiln.check(tmp_path / "labels.csv", tmp_path / "out")
    assert not found.usable
    assert [finding.keys for finding in found.of("unlabelled")] == [("0.png",)]
    mended = kiln.check(tmp_path / "labels.csv", overrides={"data.decisions": str(tmp_path / "out/check.csv")})
    assert mended.usable
    assert mended.num_samples == 5


def test_nothing_to_check_is_said():
    assert command("check").status == 2
    said = command("check", "no-such-folder")
    assert (said.status, "there is no no-such-folder" in said.err) == (3, True)
