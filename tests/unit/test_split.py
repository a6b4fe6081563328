from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_images import plant

from kiln.data.folds import fold_of, fold_split
from kiln.data.source import Source, open_source
from kiln.data.split import read_split_csv, split_source, write_split_csv
from kiln.errors import ArtifactError, DataError, ResourceError, UsageError

PINNED = {
    "0": 0,
    "1": 0,
    "10": 0,
    "11": 2,
    "2": 1,
    "3": 0,
    "4": 2,
    "5": 2,
    "6": 1,
    "7": 1,
    "8": 2,
    "9": 1,
}  # a part of the format


class NoReader:
    has_headers = False


def source_of(keys, labels=None, *, splits=None, groups=None):
    """A source without files: a split looks at keys, splits and groups only."""
    order = sorted(range(len(keys)), key=lambda i: keys[i])

    def column(values):
        return None if values is None else tuple(values[i] for i in order)

    return Source(
        "",
        column(keys),
        column(labels or ["x"] * len(keys)),
        column(splits),
        column(groups),
        None,
        "",
        _reader=NoReader(),
    )


def where(source, split):
    return {source.keys[int(i)]: name for name, part in split.parts().items() for i in part}


def test_fractions_are_reached_roughly_and_told():
    source = source_of([f"{i}.png" for i in range(20_000)])
    split = split_source(source, source.labels, val_fraction=0.15, test_fraction=0.1, seed=3)
    assert split.reached["val"] == pytest.approx(0.15, abs=0.01)
    assert split.reached["test"] == pytest.approx(0.1, abs=0.01)
    assert sum(split.reached.values()) == pytest.approx(1)
    assert sorted(np.concatenate(list(split.parts().values()))) == list(range(20_000))
    assert split.train.dtype == np.int64
    assert (np.diff(split.train) > 0).all()
    assert split.lent == ()


def test_no_test_split_unless_asked_for():
    source = source_of([f"{i}" for i in range(100)])
    assert len(split_source(source, source.labels).test) == 0
    assert len(split_source(source, source.labels, val_fraction=0).val) == 0


def test_the_seed_changes_the_cut_and_the_cut_of_a_seed_is_for_ever():
    source = source_of([f"{i}" for i in range(40)])
    first = split_source(source, source.labels, seed=0)
    assert not np.array_equal(first.val, split_source(source, source.labels, seed=1).val)
    assert [source.keys[i] for i in first.val] == [
        "11",
        "15",
        "17",
        "2",
        "20",
        "23",
        "24",
        "30",
        "7",
    ]  # a part of the format


def test_validation_is_cut_from_train_and_never_from_test():
    keys = [f"{i}" for i in range(400)]
    source = source_of(keys, splits=["test" if i % 4 == 0 else "train" for i in range(400)])
    split = split_source(source, source.labels, val_fraction=0.2)
    assert {int(source.keys[i]) % 4 for i in split.test} == {0}
    assert len(split.test) == 100
    assert 0 not in {int(source.keys[i]) % 4 for i in split.val}
    assert len(split.val) == pytest.approx(60, abs=20)


def test_given_splits_stay():
    source = source_of(list("abcdef"), list("xyxyxy"), splits=["train", "train", "val", "val", "test", "test"])
    split = split_source(source, source.labels)
    assert where(source, split) == {"a": "train", "b": "train", "c": "val", "d": "val", "e": "test", "f": "test"}
    assert split.lent == ()
    with pytest.raises(UsageError, match=r"test_fraction = 0.2 has no effect: the data has a test split"):
        split_source(source, source.labels, test_fraction=0.2)


def test_only_a_test_split_is_left_alone():
    source = source_of(list("abc"), splits=["test"] * 3)
    split = split_source(source, source.labels)
    assert (len(split.train), len(split.val), len(split.test)) == (0, 0, 3)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction = 1.0"),
        ({"val_fraction": -0.1}, "val_fraction = -0.1"),
        ({"test_fraction": float("nan")}, "test_fraction = nan"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, r"val_fraction \+ test_fraction = 1"),
    ],
)
def test_bad_fractions(fractions, message):
    source = source_of(["a"])
    with pytest.raises(UsageError, match=message):
        split_source(source, source.labels, **fractions)
    with pytest.raises(UsageError, match="2 classes for 1 samples"):
        split_source(source, ["x", "y"])


def test_a_class_left_empty_lends_its_lowest_hash():
    keys = [f"{i}" for i in range(60)]
    labels = [f"c{i % 20:02d}" for i in range(60)]
    source = source_of(keys, labels)
    split = split_source(source, source.labels, val_fraction=0.05)
    labels_in_val = {source.labels[i] for i in split.val}
    assert labels_in_val == set(labels)
    assert {source.labels[i] for i in split.train} == set(labels)
    assert split.lent
    assert set(split.lent) <= set(source.keys)
    assert split.notes == ()


def test_an_only_member_trains_and_that_is_noted():
    for seed in range(30):
        source = source_of(["only", *(f"{i}" for i in range(50))], ["rare", *["common"] * 50])
        split = split_source(source, source.labels, val_fraction=0.3, seed=seed)
        assert where(source, split)["only"] == "train"
        assert split.notes == ("1 class too small to validate: 'rare'",)


def test_a_cut_test_split_leaves_no_class_untrained():
    for seed in range(20):
        source = source_of(["only", *(f"{i}" for i in range(20))], ["rare", *["common"] * 20])
        split = split_source(source, source.labels, val_fraction=0, test_fraction=0.5, seed=seed)
        assert where(source, split)["only"] == "train"
        assert split.notes == ()
        assert set(split.lent) <= {"only"}


def test_groups_stay_together():
    keys = [f"{i:03d}" for i in range(300)]
    source = source_of(keys, [f"c{i % 3}" for i in range(300)], groups=[f"g{i // 7}" for i in range(300)])
    split = split_source(source, source.labels, val_fraction=0.3, test_fraction=0.2)
    parts = [{source.groups[i] for i in part} for part in split.parts().values()]
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts)) == 43
    empty = source_of(keys, groups=[""] * 300)
    assert len(split_source(empty, empty.labels).val) > 10  # no group is not one group


def test_a_group_that_the_data_itself_parts_is_noted():
    source = source_of(list("abc"), list("xyx"), splits=["train", "test", "train"], groups=["p", "p", "q"])
    split = split_source(source, source.labels, val_fraction=0)
    assert split.notes == ("1 group in more than one split of the data itself (a leak): 'p'",)


samples = st.dictionaries(
    st.text(max_size=6), st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "g1", "g2", "g3", "g4"])), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(old=samples, new=samples, val=st.floats(0.01, 0.6), test=st.floats(0, 0.3), seed=st.integers(0, 2**40))
def test_new_files_move_no_old_one_unless_lent(old, new, val, test, seed):
    def cut(samples):
        keys = list(samples)
        source = source_of(keys, [samples[key][0] for key in keys], groups=[samples[key][1] for key in keys])
        return source, split_source(source, source.labels, val_fraction=val, test_fraction=test, seed=seed)

    (before_source, before), (after_source, after) = cut(old), cut({**new, **old})
    then, now = where(before_source, before), where(after_source, after)
    moved = {key for key in old if then[key] != now[key]}
    assert moved <= {*before.lent, *after.lent}
    for source, split in ((before_source, before), (after_source, after)):
        parts = where(source, split)
        assert len(parts) == len(source)
        train = {source.labels[i] for i in split.train}
        assert train == set(source.labels)
        groups = {}
        for key, group in zip(source.keys, source.groups, strict=True):
            if group:
                groups.setdefault(group, set()).add(parts[key])
        assert all(len(places) == 1 for places in groups.values())
        missing = set(source.labels) - {source.labels[i] for i in split.val}
        assert bool(missing) == bool(split.notes)


@settings(max_examples=100, deadline=None)
@given(keys=st.lists(st.text(max_size=8), unique=True, max_size=60), folds=st.integers(2, 7), seed=st.integers(0, 99))
def test_folds(keys, folds, seed):
    labels = [f"c{len(key) % 3}" for key in keys]
    source = source_of(keys, labels)
    found = fold_of(source, source.labels, num_folds=folds, seed=seed)
    assert found.shape == (len(keys),)
    assert set(found.tolist()) <= set(range(folds))
    for label in set(labels):
        members = [fold for fold, name in zip(found, source.labels, strict=True) if name == label]
        assert len(members) < 2 or len(set(members)) > 1


def test_folds_are_even_keep_groups_and_leave_test_alone():
    keys = [f"{i:05d}" for i in range(3000)]
    source = source_of(
        keys,
        [f"c{i % 5}" for i in range(3000)],
        splits=["test" if i % 10 == 0 else "train" for i in range(3000)],
        groups=[f"g{i // 3}" for i in range(3000)],
    )
    folds = fold_of(source, source.labels, num_folds=5, seed=1)
    assert (folds == -1).sum() == 300
    assert np.bincount(folds[folds >= 0], minlength=5).min() > 400
    by_group = {}
    for group, fold in zip(source.groups, folds, strict=True):
        by_group.setdefault(group, set()).add(int(fold))
    assert all(len(found - {-1}) == 1 for found in by_group.values())
    with pytest.raises(UsageError, match="num_folds = 1"):
        fold_of(source, source.labels, num_folds=1)


def counts_by_fold(source, folds, num_folds):
    found = {}
    for label, fold in zip(source.labels, folds, strict=True):
        if fold >= 0:
            found.setdefault(label, [0] * num_folds)[fold] += 1
    return found


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), num_folds=st.integers(2, 8), seed=st.integers(0, 2**40)
)
def test_folds_have_the_same_of_every_class_however_small(sizes, num_folds, seed):
    labels = [f"c{number}" for number, size in enumerate(sizes) for _ in range(size)]
    source = source_of([f"{i:04d}" for i in range(len(labels))], labels)
    folds = fold_of(source, source.labels, num_folds=num_folds, seed=seed)
    for counts in counts_by_fold(source, folds, num_folds).values():
        assert max(counts) - min(counts) <= 1
    sizes = np.bincount(folds, minlength=num_folds)
    assert sizes.max() - sizes.min() <= 1


def test_folds_do_not_ask_in_which_order_the_samples_come():
    keys = [f"{i}" for i in range(200)]
    labels, groups = [f"c{i % 7}" for i in range(200)], [f"g{i // 9}" if i < 90 else "" for i in range(200)]
    turned = [list(reversed(column)) for column in (keys, labels, groups)]
    found = []
    for these_keys, these_labels, these_groups in ((keys, labels, groups), turned):
        source = source_of(these_keys, these_labels, groups=these_groups)
        found.append(dict(zip(source.keys, fold_of(source, source.labels, num_folds=4, seed=5).tolist(), strict=True)))
    assert found[0] == found[1]
    other = fold_of(source, source.labels, num_folds=4, seed=6).tolist()
    assert other != list(found[1].values())


def test_the_folds_of_a_seed_are_for_ever():
    source = source_of([f"{i}" for i in range(12)], [f"c{i % 2}" for i in range(12)], groups=["g", "g", *[""] * 10])
    assert dict(zip(source.keys, fold_of(source, source.labels, num_folds=3).tolist(), strict=True)) == PINNED


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_dealt_out_by_class(seed):
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(120), draw.integers(1, 12, size=120))
    label_of = draw.integers(3, size=120)  # most members of a group have one class, some another
    labels = np.where(draw.random(len(groups)) < 0.8, label_of[groups], draw.integers(3, size=len(groups)))
    source = source_of(
        [f"{i:04d}" for i in range(len(groups))], [f"c{label}" for label in labels], groups=[f"g{g}" for g in groups]
    )
    folds = fold_of(source, source.labels, num_folds=5, seed=seed)
    for group in set(source.groups):
        assert len({int(fold) for fold, name in zip(folds, source.groups, strict=True) if name == group}) == 1
    for counts in counts_by_fold(source, folds, 5).values():
        assert max(counts) - min(counts) <= 0.1 * sum(counts)


def test_a_class_of_two_groups_is_never_in_one_fold_alone():
    for seed in range(40):  # the second group is drawn to the fold of the first by its other class
        groups = ["a"] * 2 + ["b"] * 9 + ["c"] * 9 + ["d"] * 9
        labels = ["rare", "x", "rare", *["x"] * 8, *["y"] * 9, *["y"] * 9]
        source = source_of([f"{i:02d}" for i in range(len(labels))], labels, groups=groups)
        folds = fold_of(source, source.labels, num_folds=2, seed=seed)
        assert len({int(fold) for fold, label in zip(folds, source.labels, strict=True) if label == "rare"}) == 2


def test_the_split_of_a_fold():
    keys = [f"{i:03d}" for i in range(100)]
    given = ["test" if i % 10 == 0 else "val" if i % 10 == 1 else "train" for i in range(100)]
    source = source_of(keys, [f"c{i % 3}" for i in range(100)], splits=given)
    held_out = []
    for fold in (1, 2, 3):
        split = fold_split(source, source.labels, fold=fold, num_folds=3)
        assert [source.splits[i] for i in split.test] == ["test"] * 10
        assert sorted([*split.train, *split.val, *split.test]) == list(range(100))
        assert sum(split.reached.values()) == pytest.approx(1)
        held_out += split.val.tolist()
    assert sorted(held_out) == [i for i in range(100) if source.splits[i] != "test"]


def test_a_test_split_is_cut_alike_for_all_folds():
    source = source_of([f"{i:03d}" for i in range(300)])
    splits = [
        fold_split(source, source.labels, fold=fold, num_folds=4, test_fraction=0.2, seed=1) for fold in range(1, 5)
    ]
    assert all(np.array_equal(split.test, splits[0].test) for split in splits)
    assert len(splits[0].test) == pytest.approx(60, abs=25)
    assert sum(len(split.val) for split in splits) + len(splits[0].test) == 300


def test_an_empty_fold_is_an_error():
    source = source_of(["a", "b"], ["x", "y"])
    with pytest.raises(DataError, match="fold 3 of 3 has no samples"):
        fold_split(source, source.labels, fold=3, num_folds=3)


def test_split_csv_says_it_all_and_comes_back(tmp_path):
    keys = ["a,b.png", "new\nline.png", "car\rriage.png", '"q".png', "\U0001f600.png", "e\u0301.png", " x .png"]
    source = source_of(keys, list("xyxyxyx"), groups=["g,1", "", "", "", "", "", ""])
    split = split_source(source, source.labels, val_fraction=0.4)
    folds = fold_of(source, source.labels, num_folds=3)
    write_split_csv(tmp_path / "split.csv", source, split, folds=folds)
    rows = read_split_csv(tmp_path / "split.csv")
    assert {key: row.split for key, row in rows.items()} == where(source, split)
    assert [rows[key].label for key in source.keys] == list(source.labels)
    assert rows["a,b.png"].group == "g,1"
    assert [rows[key].fold for key in source.keys] == folds.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["split.csv"]

    write_split_csv(tmp_path / "split.csv", source_of(["a"]), split_source(source_of(["a"]), ["x"]))
    assert read_split_csv(tmp_path / "split.csv") == {"a": ("train", "x", "", -1)}
    assert (
        tmp_path / "split.csv"
    ).read_text() == '# {"kind": "kiln.split", "version": 1}\nkey,split,label\na,train,x\n'


def test_split_csv_is_a_label_table(tmp_path):
    photos = plant(tmp_path / "photos", [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(10)])
    source = open_source(photos)
    split = split_source(source, source.labels, val_fraction=0.3)
    write_split_csv(tmp_path / "split.csv", source, split)
    again = open_source(tmp_path / "split.csv", root=photos)
    assert (again.keys, again.labels) == (source.keys, source.labels)
    assert where(again, split_source(again, again.labels)) == where(source, split)


def test_split_csv_of_another_kind_or_damaged(tmp_path):
    path = tmp_path / "split.csv"
    for text in ("", "key,split\na,train\n", '# {"kind": "kiln.split", "version": 2}\nkey,split,label\n'):
        path.write_text(text)
        with pytest.raises(ArtifactError, match=r"split.csv is no split table of version 1 or older"):
            read_split_csv(path)
    for row in ("a,trian,x", "a", "a,train,x,y"):
        path.write_text(f'# {{"kind": "kiln.split", "version": 1}}\nkey,split,label\n{row}\n')
        with pytest.raises(DataError, match="row 3 is damaged"):
            read_split_csv(path)
    source = source_of(["a"])
    with pytest.raises(ResourceError, match="cannot write"):
        write_split_csv(tmp_path / "none/split.csv", source, split_source(source, source.labels))
