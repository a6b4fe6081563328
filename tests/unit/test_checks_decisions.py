"""What a user decided, applied to a source; and tables that are wrong."""

import pytest

from kiln.data.checks.decisions import apply_decisions
from kiln.data.source import open_source
from kiln.data.split import split_source
from kiln.errors import ArtifactError, DataError
from pictures import picture, png_of, put

HEAD = '# {"kind": "kiln.check", "version": 1}\n'


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Two classes of six, without splits."""
    root = tmp_path_factory.mktemp("plain")
    image = png_of(picture(0, (16, 16)))
    return put(root, {f"{name}/{number}.png": image for name in "ab" for number in range(6)})


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    """The same in two splits."""
    root = tmp_path_factory.mktemp("parted")
    image = png_of(picture(0, (16, 16)))
    return put(root, {f"{side}/{name}/{n}.png": image for side in ("train", "val") for name in "ab" for n in range(3)})


def table(tmp_path, *rows, columns="key,group,decision"):
    path = tmp_path / "check.csv"
    path.write_text(HEAD + "\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return path


def test_samples_are_dropped_and_relabelled(plain, tmp_path):
    source = open_source(plain)
    changed = apply_decisions(source, table(tmp_path, "a/1.png,,drop", "b/2.png,,relabel:a", "b/3.png,,keep"))
    assert changed.keys == tuple(key for key in source.keys if key != "a/1.png")
    labels = dict(zip(changed.keys, changed.labels, strict=True))
    assert labels == {key: "a" if key == "b/2.png" else key[0] for key in changed.keys}
    assert changed.read(1) == source.read(2)
    assert changed.size_of(1) == source.size_of(2)
    assert changed.fingerprint != source.fingerprint
    assert changed.notes[-1].endswith("check.csv: 1 sample dropped, 1 sample relabelled")
    assert source.labels.count("a") == 6


def test_nothing_decided_changes_the_notes_only(plain, tmp_path):
    source = open_source(plain)
    changed = apply_decisions(source, table(tmp_path, "a/1.png,,keep", "a/2.png,,"))
    assert (changed.keys, changed.labels, changed.groups) == (source.keys, source.labels, None)
    assert changed.notes[-1].endswith("nothing to change")


def test_a_group_stays_in_one_split_whatever_the_seed(plain, tmp_path):
    source = open_source(plain)
    path = table(tmp_path, "a/0.png,1,keep", "b/5.png,1,keep", "a/3.png,1,drop", "a/4.png,7,keep")
    changed = apply_decisions(source, path)
    assert changed.groups.count("") == 9  # 11 are left, of which two are held together; a group of one is none
    parted = 0
    for seed in range(12):
        for data, together in ((changed, True), (source, False)):
            split = split_source(data, data.labels, val_fraction=0.4, seed=seed)
            side = {data.keys[i]: name for name, part in split.parts().items() for i in part.tolist()}
            assert not together or side["a/0.png"] == side["b/5.png"]
            parted += not together and side["a/0.png"] != side["b/5.png"]
    assert parted > 0


def test_groups_of_the_data_and_of_the_table_join(tmp_path, plain):
    (tmp_path / "labels.csv").write_text(
        "path,label,group\n" + "".join(f"{name}/{n}.png,{name},{name}{n // 2}\n" for name in "ab" for n in range(6))
    )
    source = open_source(tmp_path / "labels.csv", root=plain)
    changed = apply_decisions(source, table(tmp_path, "a/0.png,1,keep", "b/5.png,1,keep"))
    of = dict(zip(changed.keys, changed.groups, strict=True))
    assert of["a/0.png"] == of["a/1.png"] == of["b/4.png"] == of["b/5.png"]
    assert of["a/2.png"] == of["a/3.png"] == "a1"
    assert len(set(of.values())) == 5


def test_samples_move_between_the_splits_of_the_data(parted, tmp_path):
    source = open_source(parted)
    changed = apply_decisions(source, table(tmp_path, "val/a/1.png,,move:train", "train/b/0.png,,move:test"))
    side = dict(zip(changed.keys, changed.splits, strict=True))
    assert (side["val/a/1.png"], side["train/b/0.png"], side["val/a/0.png"]) == ("train", "test", "val")


def test_a_spreadsheet_and_a_list_by_hand_are_read_too(plain, tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text(
        '\ufeff"# {""kind"": ""kiln.check"", ""version"": 1}",,\r\nkey,decision,why\r\na/1.png,drop,blurred\r\n'
    )
    assert len(apply_decisions(open_source(plain), path)) == 11
    path.write_text("key,decision\na/1.png,drop\na/2.png,drop\n")
    assert len(apply_decisions(open_source(plain), path)) == 10


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["c/1.png,,drop"], r"1 row wrong \(unknown key: 1\).*row 3: 'c/1.png' is not in"),
        (["a/1.png,,remove"], "row 3: 'remove' is none of keep, drop, relabel:CLASS"),
        (["a/1.png,,relabel:bb"], "row 3: 'relabel:bb': no such class; did you mean 'b'"),
        (["a/1.png,,relabel:"], "row 3: 'relabel:': no such class"),
        (["a/1.png,,move:val"], "row 3: 'move:val': the data has no splits of its own, training cuts them"),
        (["a/1.png,,move:dev"], "row 3: 'move:dev': the splits are train, val, test"),
        (["a/1.png,,drop", "a/1.png,,relabel:b"], "row 4: 'a/1.png' is 'relabel:b', and 'drop' in row 3"),
        ([f"a/{number}.png,,oops" for number in range(6)] * 5, r"30 rows wrong.*\.\.\. and 10 more"),
        ([f"{name}/{number}.png,,drop" for name in "ab" for number in range(6)], "drops all 12 samples"),
    ],
)
def test_wrong_decisions_are_named_with_their_rows(plain, tmp_path, rows, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        apply_decisions(open_source(plain), table(tmp_path, *rows))


def test_files_that_are_no_decisions(plain, tmp_path):
    source = open_source(plain)
    with pytest.raises(DataError, match=r"cannot read the decisions .*missing\.csv: No such file"):
        apply_decisions(source, tmp_path / "missing.csv")
    with pytest.raises(DataError, match="has no column decision"):
        apply_decisions(source, table(tmp_path, "a/1.png,3", columns="key,group"))
    (tmp_path / "other.csv").write_text('# {"kind": "kiln.split", "version": 1}\nkey,decision\n')
    with pytest.raises(ArtifactError, match="no table of decisions of version 1 or older"):
        apply_decisions(source, tmp_path / "other.csv")
    (tmp_path / "new.csv").write_text('# {"kind": "kiln.check", "version": 2}\nkey,decision\n')
    with pytest.raises(ArtifactError, match="update torchkiln if the file is newer"):
        apply_decisions(source, tmp_path / "new.csv")
