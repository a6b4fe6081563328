from __future__ import annotations

import io
import tarfile
import zipfile

import pytest
from small_images import plant, png, snapshot

from kiln.data.class_file import class_names_from
from kiln.data.rows import Asked, parse_table
from kiln.data.source import open_source
from kiln.errors import DataError, UsageError


@pytest.fixture
def photos(tmp_path):
    return plant(tmp_path, ["a.png", "b.png", "c.png"])


def rows_of(source):
    return dict(zip(source.keys, source.labels, strict=True))


ABC = {"a.png": "cat", "b.png": "dog", "c.png": "cat"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "path,label\na.png,cat\nb.png,dog\nc.png,cat\n"),
        ("t.csv", "a.png,cat\nb.png,dog\nc.png,cat"),
        ("t.csv", "image;class\na.png;cat\nb.png;dog\nc.png;cat\n"),
        ("t.tsv", "filename\ttarget\na.png\tcat\nb.png\tdog\nc.png\tcat\n"),
        ("t.txt", "a.png, cat\nb.png, dog\nc.png, cat\n"),
        ("t.txt", "a.png cat\nb.png dog\nc.png   cat\n"),
        ("t.txt", "\n\na.png\tcat\n\nb.png\tdog\nc.png\tcat\n\n"),
        ("t.csv", '"path","label"\n"a.png","cat"\n"b.png","dog"\n"c.png","cat"\n'),
        ("t.csv", "\ufeffpath,label\r\na.png,cat\r\nb.png,dog\r\nc.png,cat\r\n"),
        ("t.csv", "label,Image Path\ncat,a.png\ndog,./b.png\ncat,c.png\n"),
        ("t.csv", "cat,a.png\ndog,b.png\ncat,c.png\n"),
        ("t.csv", "# made by hand\n# today\npath,label\na.png,cat\nb.png,dog\nc.png,cat\n"),
        ("t.csv", "id,breed\na,cat\nb,dog\nc,cat\n"),
        ("t.csv", "picture,animal\na.png,cat\nb.png,dog\nc.png,cat\n"),
        ("t.csv", "id,camera,filename,class\n1,x,a.png,cat\n2,x,b.png,dog\n3,y,c.png,cat\n"),
    ],
)
def test_every_way_to_write_a_table(photos, name, text):
    (photos / name).write_text(text, encoding="utf-8", newline="")
    source = open_source(photos / name)
    assert rows_of(source) == ABC
    assert source.read(1) == png(1)
    assert source.splits is None


def test_utf16_as_excel_writes_it(photos):
    (photos / "t.csv").write_bytes("path\tlabel\r\na.png\tcat\r\nb.png\tdog\r\nc.png\tcat\r\n".encode("utf-16"))
    assert rows_of(open_source(photos / "t.csv")) == ABC


def test_names_with_blanks_separators_and_newlines(tmp_path):
    names = ["my cat.png", "a,b.png", "two\nlines.png"]
    plant(tmp_path, names)
    (tmp_path / "t.csv").write_text('path,label\nmy cat.png,x\n"a,b.png",y\n"two\nlines.png","say ""z"""\n', newline="")
    assert rows_of(open_source(tmp_path / "t.csv")) == {"my cat.png": "x", "a,b.png": "y", "two\nlines.png": 'say "z"'}
    (tmp_path / "t.txt").write_text("my cat.png 0\na,b.png 1\n")
    assert rows_of(open_source(tmp_path / "t.txt")) == {"my cat.png": "0", "a,b.png": "1"}


def test_lists_without_labels_are_for_prediction(photos):
    plant(photos, ["my cat, black.png"])
    (photos / "t.txt").write_text("a.png\nmy cat, black.png\n")
    source = open_source(photos / "t.txt", labelled=False)
    assert source.keys == ("a.png", "my cat, black.png")
    assert source.labels is None
    with pytest.raises(DataError, match=r"t.txt has no label column: it has 1 column and no header") as caught:
        open_source(photos / "t.txt")
    assert "path,label" in str(caught.value)


@pytest.mark.parametrize("column", ["split", "subset", "fold"])
def test_splits_and_groups(photos, column):
    (photos / "t.csv").write_text(
        f"path,label,{column},patient\na.png,cat,Train,p1\nb.png,dog,valid,p2\nc.png,cat,TEST,p1\n"
    )
    source = open_source(photos / "t.csv")
    assert source.splits == ("train", "val", "test")
    assert source.groups == ("p1", "p2", "p1")
    assert "t.csv: column 'patient' keeps samples of one group in one split" in source.notes


def test_split_column_without_a_header(photos):
    (photos / "t.csv").write_text("a.png,train,cat\nb.png,val,dog\nc.png,test,cat\n")
    source = open_source(photos / "t.csv")
    assert (source.splits, source.labels) == (("train", "val", "test"), ("cat", "dog", "cat"))


def test_a_fold_column_of_numbers_is_no_split(photos):
    (photos / "t.csv").write_text("path,label,fold\na.png,cat,0\nb.png,dog,1\nc.png,cat,2\n")
    source = open_source(photos / "t.csv")
    assert source.splits is None
    assert "t.csv: column 'fold' holds no train, val or test, and is not read as the split" in source.notes


def test_columns_by_name_and_number(photos):
    (photos / "t.csv").write_text("label,file,truth,part,who\nx,a.png,cat,train,1\ny,b.png,dog,test,2\n")
    source = open_source(
        photos / "t.csv", path_column="file", label_column="truth", split_column="part", group_column=5
    )
    assert rows_of(source) == {"a.png": "cat", "b.png": "dog"}
    assert source.splits == ("train", "test")
    assert source.groups == ("1", "2")
    with pytest.raises(
        UsageError, match=r"label_column = 'trut' is no column of t\.csv\n.*\n  did you mean: truth"
    ) as caught:
        open_source(photos / "t.csv", label_column="trut")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="a number from 1 to 5"):
        open_source(photos / "t.csv", label_column=6)


def test_no_label_column_lists_the_columns(photos):
    (photos / "t.csv").write_text("path,width,height\na.png,8,8\n")
    with pytest.raises(
        DataError, match=r"no label column: its columns are 'path', 'width', 'height'\n.*\n  next: --label-column"
    ):
        open_source(photos / "t.csv")


def test_root_absolute_windows_and_unicode_names(tmp_path):
    images = plant(tmp_path / "images", ["x/a.png", "x/cafe\u0301.png", "x/\u00e9.png"])
    (tmp_path / "labels").mkdir()
    table = tmp_path / "labels/t.csv"
    table.write_text(f"path,label\nx\\a.png,1\nx/caf\u00e9.png,2\n{images}/x/e\u0301.png,3\n", encoding="utf-8")
    source = open_source(table, root=images)
    assert rows_of(source) == {"x/a.png": "1", "x/cafe\u0301.png": "2", "x/\u00e9.png": "3"}
    table.write_text("path,label\n../images/x/a.png,1\n", encoding="utf-8")
    assert rows_of(open_source(table)) == {"../images/x/a.png": "1"}
    with pytest.raises(DataError, match=r"root = .* is no folder, zip or tar"):
        open_source(table, root=tmp_path / "nowhere")


def test_root_may_be_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("x/a.png", png(7))
    (tmp_path / "t.csv").write_text("path,label\nx/a.png,cat\n")
    source = open_source(tmp_path / "t.csv", root=tmp_path / "images.zip")
    assert source.read(0) == png(7)
    (tmp_path / "t.csv").write_text("path,label\n../t.csv,cat\n")
    with pytest.raises(DataError, match=r"no file '../t.csv'"):
        open_source(tmp_path / "t.csv", root=tmp_path / "images.zip")


def test_names_below_a_folder_of_images(tmp_path):
    plant(tmp_path, ["images/a.png", "images/b.png"])
    (tmp_path / "labels.csv").write_text("image,label\na,cat\nb,dog\n")
    source = open_source(tmp_path)
    assert rows_of(source) == {"images/a.png": "cat", "images/b.png": "dog"}
    assert "labels.csv: names found in 'images/'" in source.notes


@pytest.mark.parametrize(
    "names", [("train.csv", "test.csv"), ("train.txt", "test.txt"), ("train_labels.csv", "labels-test.csv")]
)
def test_several_tables_in_one_folder(tmp_path, names):
    plant(tmp_path, ["images/1.png", "images/2.png", "images/3.png"])
    (tmp_path / names[0]).write_text("images/1.png,cat\nimages/2.png,dog\n")
    (tmp_path / names[1]).write_text("images/3.png,cat\n")
    (tmp_path / "README.txt").write_text("hello")
    source = open_source(tmp_path)
    assert source.splits == ("train", "train", "test")
    assert rows_of(source) == {"images/1.png": "cat", "images/2.png": "dog", "images/3.png": "cat"}


def test_kaggle_style_split_folders_beside_their_tables(tmp_path):
    plant(tmp_path, ["train/1.png", "train/2.png", "test/1.png"])
    (tmp_path / "train.csv").write_text("id,label\n1,cat\n2,dog\n")
    (tmp_path / "test.csv").write_text("id,label\n1,cat\n")
    source = open_source(tmp_path)
    assert rows_of(source) == {"train/1.png": "cat", "train/2.png": "dog", "test/1.png": "cat"}
    assert source.splits == ("test", "train", "train")


def test_tables_that_no_name_tells_apart(tmp_path):
    plant(tmp_path, ["1.png"])
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("1.png,cat\n")
    with pytest.raises(DataError, match=r"2 tables in .*, and no name tells which holds the labels\n  a.csv\n  b.csv"):
        open_source(tmp_path)


def test_class_folders_come_before_a_table_beside_them(tmp_path):
    plant(tmp_path, ["cat/1.png", "dog/2.png"])
    (tmp_path / "list.csv").write_text("path,label\ncat/1.png,x\ndog/2.png,y\n")
    source = open_source(tmp_path)
    assert source.labels == ("cat", "dog")
    assert open_source(tmp_path, label_column="label").labels == ("x", "y")


def test_tables_in_archives_and_wrapping_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("set/labels.csv", "path,label\nimg/1.png,cat\nimg/2.png,dog\n")
        file.writestr("set/img/1.png", png(1))
        file.writestr("set/img/2.png", png(2))
    source = open_source(tmp_path / "a.zip")
    assert rows_of(source) == {"img/1.png": "cat", "img/2.png": "dog"}
    assert source.read(1) == png(2)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in [
            ("train.txt", b"1.png 0\n"),
            ("test.txt", b"2.png 1\n"),
            ("1.png", png(1)),
            ("2.png", png(2)),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    source = open_source(tmp_path / "a.tar")
    assert (source.labels, source.splits) == (("0", "1"), ("train", "test"))


def test_integer_labels_and_class_names(photos):
    (photos / "t.csv").write_text("a.png,0\nb.png,1\nc.png,dog\n")
    (photos / "classes.names").write_text("cat\ndog\n")
    source = open_source(photos / "t.csv", class_names=photos / "classes.names")
    assert source.labels == ("0", "1", "dog")
    assert source.class_names == ("cat", "dog")
    (photos / "t.csv").write_text("a.png,0\nb.png,2\nc.png,bird\n")
    with pytest.raises(
        DataError,
        match=r"2 rows wrong \(unknown class: 2\)\n  expected: 'cat', 'dog', or a number from 0 to 1\n"
        r"  row 2: '2' is no class\n  row 3: 'bird' is no",
    ):
        open_source(photos / "t.csv", class_names=["cat", "dog"])


def test_several_labels_in_one_cell_are_kept_as_text(photos):
    (photos / "t.csv").write_text('path,labels\na.png,"red,round"\nb.png,\nc.png, red \n')
    source = open_source(photos / "t.csv")
    assert source.labels == ("red,round", "", "red")
    assert source.unlabelled == ("t.csv row 3",)
    assert "1 row with an empty label" in source.notes
    with pytest.raises(DataError, match=r"1 row without a label\n.*\n  t.csv row 3\n") as caught:
        source.require_labels()
    assert caught.value.code == "E203"
    (photos / "t.csv").write_text("path;labels\na.png;red,round\nb.png;round\nc.png;\n")
    assert open_source(photos / "t.csv", class_names=["red", "round"]).labels == ("red,round", "round", "")


def test_all_problems_at_once_with_row_numbers(photos):
    (photos / "t.csv").write_text(
        "path,label,split\n"
        "a.png,cat,train\n"
        "gone.png,cat,train\n"
        "a.png,cat,train\n"
        "a.png,dog,train\n"
        "\n"
        "b.png,cat\n"
        "b.png,red,green,train\n"
        "c.png,cat,trian\n"
    )
    with pytest.raises(DataError) as caught:
        open_source(photos / "t.csv")
    assert caught.value.code == "E203"
    assert caught.value.exit_code == 3
    assert caught.value.what == (
        "t.csv: 6 rows wrong (wrong number of cells: 2, no such file: 1, listed twice: 1, "
        "two labels for one file: 1, unknown split: 1)"
    )
    assert caught.value.details == (
        "row 3: no file 'gone.png'",
        "row 4: 'a.png' again, as in row 2",
        "row 5: 'a.png' again, now 'dog'; it is 'cat' in row 2",
        "row 7: 2 cells instead of 3",
        "row 8: 4 cells instead of 3; put quotes around a cell that holds the separator",
        "row 9: split 'trian' is none of train, val, test",
    )
    assert f"names are relative to {photos}; --root FOLDER" in str(caught.value)


def test_the_same_file_in_two_tables_is_a_leak(tmp_path):
    plant(tmp_path, ["1.png"])
    (tmp_path / "train.csv").write_text("path,label\n1.png,cat\n")
    (tmp_path / "test.csv").write_text("path,label\n./1.png,cat\n")
    with pytest.raises(DataError, match=r"train.csv row 2: '1.png' again, as in test.csv row 2"):
        open_source(tmp_path)


def test_first_twenty_and_the_count(photos):
    (photos / "t.csv").write_text("path,label\n" + "".join(f"{i}.png,cat\n" for i in range(1000)))
    with pytest.raises(DataError, match=r"1,000 rows wrong \(no such file: 1,000\)") as caught:
        open_source(photos / "t.csv")
    assert len(caught.value.details) == 21
    assert caught.value.details[-1] == "... and 980 more"


def test_a_million_rows(photos):
    (photos / "t.csv").write_text("path,label\n" + "a.png,cat\n" * 1_000_000)
    with pytest.raises(DataError, match=r"999,999 rows wrong \(listed twice: 999,999\)\n  row 3: "):
        open_source(photos / "t.csv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "t.csv has no rows"),
        (b"# only\n# comments", "t.csv has no rows"),
        (b"path,label\n", "a header and no rows"),
        (
            b"path,label\na.png,caf\xe9\n",
            r"t.csv is not UTF-8 text: byte 0xe9\n  where: line 2\n  next: save the table as UTF-8",
        ),
        (b'path,label\n"a.png,cat\n' + b"b.png,cat\n" * 20_000, r"row 2: field larger .*\n  next: most often a quote"),
    ],
)
def test_tables_that_are_none(photos, data, message):
    (photos / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_source(photos / "t.csv")


def test_directories_and_empty_names_are_no_files(photos):
    (photos / "folder.png").mkdir()
    (photos / "t.csv").write_text("path,label\nfolder.png,cat\n,cat\na\0.png,cat\n")
    with pytest.raises(DataError, match=r"3 rows wrong \(no such file: 3\)"):
        open_source(photos / "t.csv")


def test_separator_by_what_the_rows_say():
    def width(text, where="t.csv"):
        return parse_table(text.encode(), where=where).columns.width

    assert width("x.png;a,b\ny.png;c\n") == 2
    assert width("x.png,a;b\ny.png,c;d\n") == 2
    assert width("x.png,knife, small\ny.png,fork\nz.png,spoon\n") == 2
    assert width("x.png T shirt\n", "t.txt") == 3
    columns = parse_table(b"1,a.png,x\n", where="t", asked=Asked(path=2, label="3")).columns
    assert (columns.path, columns.label) == (1, 2)


def test_class_files(tmp_path):
    file = tmp_path / "classes.txt"
    for text in (
        "cat\nhot dog\n",
        "\ufeffcat\r\nhot dog\r\n\r\n",
        "1 hot dog\n0 cat\n",
        "0: cat\n1: hot dog",
        '["cat", "hot dog"]',
    ):
        file.write_text(text, encoding="utf-8", newline="")
        assert class_names_from(file) == ("cat", "hot dog")
    file.write_text('{"1": "hot dog", "0": "cat"}')
    assert class_names_from(str(file)) == class_names_from(["cat", "hot dog"]) == ("cat", "hot dog")
    for text, message in [
        ("cat\ncat\n", "twice: 'cat'"),
        ("", "it holds none"),
        ('{"1": "cat"}', "every index from 0"),
        ("[1, 2", "cannot read the class names"),
    ]:
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            class_names_from(file)
    with pytest.raises(DataError, match="No such file"):
        class_names_from(tmp_path / "none.txt")


def test_a_table_is_never_written_to(photos):
    (photos / "t.csv").write_text("path,label\na.png,cat\n")
    before = snapshot(photos)
    open_source(photos / "t.csv").read(0)
    assert snapshot(photos) == before
