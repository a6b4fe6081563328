"""Tasks: names and numbers, losses, metrics, predictions; the same questions put to each, and what only one answers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln import tasks
from kiln.errors import ArtifactError, DataError, NumericError, UsageError
from kiln.losses import make
from kiln.metrics import Metric
from kiln.names import TASKS

classification, multilabel = tasks.get("classification"), tasks.get("multilabel")


@pytest.fixture(params=sorted(TASKS))
def task(request):
    return tasks.get(request.param)


# What every task answers


def test_every_task_goes_from_labels_to_words_and_back(task):
    labels = ["cat", "dog", "emu", "dog", "cat", "emu"]
    classes = task.class_names(labels, None)
    assert classes == ("cat", "dog", "emu")
    assert task.num_outputs(classes) == 3
    targets = task.encode(labels, classes)
    assert len(targets) == 6
    assert task.strata(labels) == tuple(labels)
    rows = targets if targets.ndim == 2 else np.eye(3)[targets]
    probabilities = task.probabilities(np.float32(rows * 20 - 10))
    assert probabilities.dtype == np.float64
    decoded = [task.decode(row, classes, top_k=2) for row in probabilities]
    assert [prediction.label for prediction in decoded] == labels
    assert all(prediction.labels == (prediction.label,) for prediction in decoded)
    assert all(prediction.probability > 0.99 for prediction in decoded)
    assert all(len(prediction.top) == 2 and prediction.top[0][0] == prediction.label for prediction in decoded)
    assert all(isinstance(share, float) for prediction in decoded for _, share in prediction.top)


def test_every_task_trains_with_its_own_loss_and_measures_the_same_number(task):
    classes = ("a", "b", "c")
    targets = task.encode(["a", "c", "b", "c"], classes)
    logits = np.random.default_rng(0).normal(size=(4, 3))
    values = make(task.loss)(torch.from_numpy(logits), torch.from_numpy(targets)).values
    assert values.shape == (4,)
    found = task.metrics(logits, targets, classes)
    assert found["loss"].value == pytest.approx(float(values.mean()), abs=1e-12)
    smooth = make(task.loss, smoothing=0.2)(torch.from_numpy(logits), torch.from_numpy(targets)).values
    assert not torch.allclose(smooth, values)
    probabilities = task.probabilities(logits)
    torchs = torch.softmax if task.name == "classification" else lambda x, _: torch.sigmoid(x)
    np.testing.assert_allclose(probabilities, torchs(torch.from_numpy(logits), 1).numpy(), atol=1e-14)


def test_every_task_has_the_keys_others_rely_on(task):
    classes = tuple("abcdefg")
    targets = task.encode(list(classes) * 4, classes)
    logits = np.random.default_rng(1).normal(size=(28, 7)).astype(np.float32)
    found = task.metrics(logits, targets, classes)
    assert {"accuracy", "loss", task.monitor} <= found.keys()
    for name, metric in found.items():
        assert isinstance(metric, Metric)
        assert type(metric.value) is type(metric.low) is type(metric.high) is float
        assert metric.low <= metric.value <= metric.high
        assert metric.n == 28
        assert metric.higher_is_better == (name != "loss")
    quick = task.metrics(logits, targets, classes, intervals=False)
    assert [metric.value for metric in quick.values()] == [metric.value for metric in found.values()]
    assert all(metric.low is None and metric.high is None for metric in quick.values())
    assert task.metrics(logits, targets, classes, seed=0) == found
    assert task.metrics(logits, targets, classes, seed=1)["loss"] != found["loss"]


def test_every_task_leaves_out_samples_of_weight_zero(task):
    classes = ("a", "b", "c")
    targets = task.encode(["a", "b", "c", "a", "b"], classes)
    logits = np.random.default_rng(2).normal(size=(5, 3))
    logits[1] = np.nan  # what the model said of an unreadable file does not matter
    kept = [0, 2, 3, 4]
    weights = np.array([1, 0, 1, 1, 1], np.float32)
    found = task.metrics(logits, targets, classes, weights=weights)
    assert found == task.metrics(logits[kept], targets[kept], classes)
    assert found["accuracy"].n == 4
    assert task.details(logits, targets, classes, weights=weights) == task.details(logits[kept], targets[kept], classes)
    with pytest.raises(NumericError, match="not finite for 1 of 5 samples"):
        task.metrics(logits, targets, classes)
    with pytest.raises(DataError, match="no samples to evaluate"):
        task.metrics(logits, targets, classes, weights=np.zeros(5))


def test_every_task_has_details_ready_for_json(task):
    classes = ("a", "b", "c")
    targets = task.encode(["a", "a", "b", "b"], classes)
    logits = np.array([[2.0, -1, -1], [-1, 2, -1], [-1, 2, -1], [-1, 2, -1]])
    details = json.loads(json.dumps(task.details(logits, targets, classes), allow_nan=False))
    rows = details["per_class"]
    assert [row["class"] for row in rows] == list(classes)
    assert [row["support"] for row in rows] == [2, 2, 0]
    assert [row["recall"] for row in rows] == [0.5, 1.0, 0.0]
    assert rows[1]["precision"] == pytest.approx(2 / 3)
    assert rows[0]["recall_low"] < 0.5 < rows[0]["recall_high"]
    assert len(details["confusion"]) == 3


def test_every_task_survives_the_model_file(task):
    values = json.loads(json.dumps(task.to_dict()))
    assert tasks.from_dict(values) == task
    assert values["name"] == task.name


def test_no_task_needs_torch_to_read_labels_and_predictions():
    code = (
        "import sys; from kiln import tasks\n"
        "for name in ('classification', 'multilabel'):\n"
        "    task = tasks.get(name); classes = task.class_names(['a', 'b'], None)\n"
        "    task.encode(['a', 'b'], classes); task.decode(task.probabilities([[1.0, 0.0]])[0], classes)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_unknown_tasks():
    with pytest.raises(UsageError, match="unknown task 'clasification'") as caught:
        tasks.get("clasification")
    assert caught.value.suggestion == "classification"
    for values in ({"name": "regression"}, {}, {"name": "os:system", "command": "true"}):
        with pytest.raises(ArtifactError, match="the file holds a model for the task"):
            tasks.from_dict(values)
    with pytest.raises(ArtifactError, match=r"the task 'multilabel' has other options: .*colour"):
        tasks.from_dict({"name": "multilabel", "colour": "red"})


# Names


def test_names_are_sorted_by_code_point_and_numbers_by_value():
    assert classification.class_names(["b", "B", "ä", "a", "é", "Z", "a"]) == ("B", "Z", "a", "b", "ä", "é")
    assert classification.class_names(["10", "9", "-1", "2"]) == ("-1", "2", "9", "10")
    assert classification.class_names(["10", "9", "x"]) == ("10", "9", "x")
    assert classification.class_names(["002", "010", "001"]) == ("001", "002", "010")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=2, unique=True), st.data())
def test_classes_do_not_depend_on_the_order_of_samples(labels, data):
    classes = classification.class_names(labels)
    assert classification.class_names(data.draw(st.permutations(labels * 2))) == classes
    assert sorted(classes) == sorted(labels)
    targets = classification.encode(labels, classes)
    assert [classes[target] for target in targets] == labels


def test_indices_become_the_names_of_a_class_file():
    given_names = ("zebra", "ant", "moth")
    for labels in (["2", "0", "0"], ["moth", "zebra", "zebra"], ["moth", "0", "zebra"]):
        classes = classification.class_names(labels, given_names)
        assert classes == given_names  # the list says which classes there are, and their order, seen or not
        assert classification.encode(labels, classes, given=given_names).tolist() == [2, 0, 0]


def test_indices_of_one_data_set_reach_the_classes_of_another_by_name():
    trained = classification.class_names(["ant", "moth", "zebra"])
    assert trained == ("ant", "moth", "zebra")
    assert classification.encode(["2", "0"], trained, given=("zebra", "ant", "moth")).tolist() == [1, 2]


def test_names_that_are_numbers_are_matched_by_name():
    digits = ("3", "5", "8")
    assert classification.encode(["5", "3", "8"], digits, given=digits).tolist() == [1, 0, 2]
    with pytest.raises(DataError, match="only in the data: '0'"):
        classification.encode(["0"], digits, given=digits)


def test_numbers_outside_the_class_file():
    with pytest.raises(DataError, match="label 3 has no class name: labels run from 1 to 3") as caught:
        classification.class_names(["1", "2", "3"], ("a", "b", "c"))
    assert caught.value.code == "E203"
    assert "expected: 0 to 2, for 3 class names" in str(caught.value)
    assert "if the numbers start at 1" in str(caught.value)
    with pytest.raises(DataError, match="label -1 has no class name"):
        classification.class_names(["-1", "2"], ("a", "b", "c"))


def test_labels_that_are_no_class_are_listed_with_the_differences():
    with pytest.raises(DataError, match="no class of the 3 known: 2 of 3") as caught:
        classification.encode(["cat", "dgo", "yak", "dgo"], ("cat", "dog", "emu"))
    assert caught.value.code == "E205"
    assert str(caught.value).splitlines()[1:5] == [
        "  only in the data: 'dgo' (samples: 2); did you mean 'dog'?",
        "  only in the data: 'yak' (samples: 1)",
        "  only in the classes: 'dog'",
        "  only in the classes: 'emu'",
    ]
    many = [f"name {i}" for i in range(50)]
    with pytest.raises(DataError, match=r"and 30 more") as caught:
        classification.encode(many, ("name x",) * 1)
    assert str(caught.value).count("only in the data") == 20


def test_a_class_missing_from_a_split_shifts_nothing():
    classes = ("a", "b", "c")
    assert classification.encode(["c", "a"], classes).tolist() == [2, 0]
    assert multilabel.encode(["c"], classes).tolist() == [[0, 0, 1]]


def test_too_few_classes():
    with pytest.raises(DataError, match="the data hold one class, 'cat'\n  expected: at least 2"):
        classification.class_names(["cat", "cat"])
    with pytest.raises(DataError, match="the data hold no class"):
        classification.class_names([])
    with pytest.raises(DataError, match="the data hold no class\n  expected: at least 1"):
        multilabel.class_names(["", ""])
    assert multilabel.class_names(["broken", ""]) == ("broken",)


def test_samples_without_a_label():
    for call in (classification.class_names, lambda labels: classification.encode(labels, ("a", "b"))):
        with pytest.raises(DataError, match=r"2 of 4 samples have no label\n  where: sample 1, 3") as caught:
            call(["a", "", "b", ""])
        assert caught.value.code == "E203"
        assert "multilabel" in str(caught.value)


def test_a_name_given_twice():
    for task in (classification, multilabel):
        with pytest.raises(DataError, match="the class names hold 'a' more than once"):
            task.class_names(["0", "1"], ("a", "b", "a"))


# Classification


def test_classification_measures_what_it_says():
    classes = tuple("abcdef")
    targets = np.array([0, 1, 2, 3, 4, 5])
    logits = np.zeros((6, 6))
    logits[np.arange(6), [0, 1, 2, 0, 0, 0]] = 5.0
    found = classification.metrics(logits, targets, classes)
    assert list(found) == ["accuracy", "top5_accuracy", "balanced_accuracy", "f1_macro", "loss"]
    assert found["accuracy"].value == found["balanced_accuracy"].value == 0.5
    assert found["top5_accuracy"].value == pytest.approx(5 / 6)  # class f comes last among equals
    assert found["f1_macro"].value == pytest.approx((2 * 1 / (4 + 1) + 1 + 1) / 6)
    right, wrong = np.log(np.exp(5) + 5) - 5, np.log(np.exp(5) + 5)
    assert found["loss"].value == pytest.approx((right + wrong) / 2)
    assert "top5_accuracy" not in classification.metrics(logits[:5, :5], targets[:5], classes[:5])


def test_perfect_predictions_on_few_samples_are_not_certain():
    logits = np.eye(3)[[0, 1, 2, 0]] * 9
    found = classification.metrics(logits, np.array([0, 1, 2, 0]), ("a", "b", "c"))
    for name in ("accuracy", "balanced_accuracy"):
        assert found[name].value == found[name].high == 1.0
        assert found[name].low < 0.7


def test_more_alternatives_than_classes_are_all_of_them():
    prediction = classification.decode(np.array([0.2, 0.5, 0.3]), ("a", "b", "c"), top_k=9)
    assert prediction.top == (("b", 0.5), ("c", 0.3), ("a", 0.2))
    assert (prediction.label, prediction.probability) == ("b", 0.5)
    assert classification.decode(np.array([0.5, 0.5]), ("a", "b")).label == "a"


# Multilabel


def test_label_text_is_split_at_the_separator():
    assert multilabel.class_names([" red , round", "red", "", ",blue,"]) == ("blue", "red", "round")
    assert multilabel.encode([" red , round", "red,red", "", ",blue,"], ("blue", "red", "round")).tolist() == [
        [0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0],
    ]  # fmt: skip
    assert multilabel.encode([], ("a",)).shape == (0, 1)
    assert multilabel.encode(["a"], ("a",)).dtype == np.float32
    assert multilabel.encode(["2,0", "ant"], ("x", "ant", "y"), given=("x", "ant", "y")).tolist() == [
        [1, 0, 1],
        [0, 1, 0],
    ]
    pipes = tasks.get("multilabel", separator="|")
    assert pipes.class_names(["a,b|c", "c"]) == ("a,b", "c")
    assert tasks.from_dict(pipes.to_dict()) == pipes != multilabel
    assert pipes.decode(np.array([0.9, 0.8]), ("x", "y")).label == "x|y"
    with pytest.raises(UsageError, match="separator = ''"):
        tasks.get("multilabel", separator="")


def test_unknown_labels_among_many():
    with pytest.raises(DataError, match="only in the data: 'gren' \\(samples: 1\\); did you mean 'green'"):
        multilabel.encode(["red,gren", "red"], ("red", "green"))


def test_a_sample_is_split_by_its_rarest_label():
    assert multilabel.strata(["a,b", "a", "a,c", "b", "", "c,b"]) == ("a", "a", "c", "b", "", "c")


def test_multilabel_measures_what_it_says():
    classes = ("a", "b")
    targets = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], np.float32)
    logits = np.array([[2.0, -1.0], [0.0, -1.0], [-2.0, 1.0], [-3.0, 3.0]])
    found = multilabel.metrics(logits, targets, classes)
    assert list(found) == ["accuracy", "label_accuracy", "f1_macro", "f1_micro", "mean_average_precision", "loss"]
    assert found["accuracy"].value == 0.5
    assert found["label_accuracy"].value == 0.75
    assert found["f1_macro"].value == pytest.approx((1 + 0.5) / 2)
    assert found["f1_micro"].value == pytest.approx(2 * 3 / (4 + 4))
    assert found["mean_average_precision"].value == pytest.approx((1 + (0.5 + 0.5 * 2 / 4)) / 2)
    tables = multilabel.details(logits, targets, classes)["confusion"]
    assert tables == [[[2, 0], [0, 2]], [[1, 1], [1, 1]]]


def test_multilabel_details_leave_open_what_cannot_be_measured():
    rows = multilabel.details(np.zeros((2, 2)), np.array([[1, 0], [0, 0]]), ("a", "b"))["per_class"]
    assert [row["average_precision"] for row in rows] == [0.5, None]


def test_multilabel_decides_each_label_at_one_half():
    prediction = multilabel.decode(np.array([0.5, 0.9, 0.1]), ("a", "b", "c"), top_k=2)
    assert (prediction.label, prediction.labels) == ("a,b", ("a", "b"))
    assert prediction.probability == 0.5
    assert prediction.top == (("b", 0.9), ("a", 0.5))
    nothing = multilabel.decode(np.array([0.1, 0.2]), ("a", "b"))
    assert (nothing.label, nothing.labels, nothing.probability) == ("", (), 0.8)


# Which of the two


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["cat", "dog"], "classification"),
        (["red,round", "red", "blue,round"], "multilabel"),
        (["red, round", "red, square", "blue, round"], "multilabel"),
        (["knife, small", "fork", "knife, large"], "classification"),
        (["a,b", "c,d"], "classification"),
        (["a,b", "a", "b"], "multilabel"),
        (["a,", "a"], "multilabel"),
        ([], "classification"),
    ],
)
def test_detect(labels, expected):
    assert tasks.detect(labels) == expected


def test_detect_with_another_separator():
    assert tasks.detect(["a|b", "a"], separator="|") == "multilabel"
    assert tasks.detect(["a|b", "a"]) == "classification"


def test_the_task_to_train_for():
    labels = ["a|b", "a", "b"]
    assert tasks.choose(labels) == classification
    assert tasks.choose(labels, separator="|") == tasks.get("multilabel", separator="|")
    assert tasks.choose(labels, name="classification", separator="|") == classification
    assert tasks.choose(["a"], name="multilabel") == multilabel
    with pytest.raises(UsageError, match="unknown task 'multi'"):
        tasks.choose(labels, name="multi")
