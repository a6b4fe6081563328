"""The command in Chinese: from the first line of a training to the last, errors and advice; what programs read stays."""

from __future__ import annotations

import json
import re

import pytest
import torch
from albums import FLAGS, command, split_folders

from kiln.cli import VERBS
from kiln.language import current, speaking
from kiln.language.patterns import translated
from kiln.run import Run

ENGLISH = re.compile(r"(?:\b[A-Za-z][a-z]+\b[ ,]+){2,}[A-Za-z][a-z]+\b")
COMMAND = re.compile(r"Hugging Face|kiln \w.*|'[^']*'|\S*/\S*|--\S+")


def english_in(text):
    """Runs of three English words or more, commands and names aside."""
    return [found[0] for line in text.splitlines() if (found := ENGLISH.search(COMMAND.sub("", line)))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("chinese")
    split_folders(place / "photos")
    said = command("train", place / "photos", *FLAGS, "--lang", "zh", "--output", place / "runs", "--name", "one")
    assert said.status == 0, said.err
    return Run(place / "runs" / "one"), said


def test_a_training_speaks_chinese_from_the_first_line_to_the_last(run):
    made, said = run
    lines = said.out.splitlines()
    assert lines[0].startswith("数据       ")
    assert "36 张图像（训练集 24，验证集 6，测试集 6）" in lines[0]
    assert any(line.startswith("测试集 准确率 ") for line in lines)
    assert lines[-1].startswith("       kiln ")
    assert english_in(said.out) == []
    assert english_in((made.path / "log.txt").read_text()) == []
    assert "训练损失" in (made.path / "log.txt").read_text()


def test_what_programs_read_is_english(run):
    made, _ = run
    assert {"accuracy", "loss"} <= set(made.result["metrics"]["test"])
    assert (made.path / "metrics.jsonl").read_text().isascii()
    assert all(value.isascii() for value in made.resolved["reasons"].values())
    said = command("evaluate", made.path, "--json", "--lang=zh")
    assert said.json["accuracy"] == made.result["metrics"]["test"]["accuracy"]["value"]
    failed = command("train", "nowhere", "--lang", "zh", "--json")
    assert failed.json["error"]["message"].isascii()
    assert "error E" in failed.json["error"]["details"]
    assert "错误 E" in failed.err


def test_an_evaluation_and_a_prediction_speak_chinese(run):
    made, _ = run
    said = command("--lang", "zh", "evaluate", made.path)
    assert "平衡准确率" in said.out
    assert english_in(said.out) == []
    said = command("predict", made.path, made.recipe.data.path, "--lang", "zh")
    assert english_in(said.out) == []
    assert "图像   36" in said.out


def test_the_overview_is_chinese():
    said = command("--help", "--lang", "zh")
    assert english_in("\n".join(said.out.splitlines()[6 : 6 + len(VERBS)])) == []
    assert all(f"  {verb} " in said.out for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["trian"],
            ["错误 E101：未知的参数、字段或取值", "未知的命令 'trian'", "是否想写：train", "下一步：kiln --help"],
        ),
        (["train", "--epoch", "3"], ["未知的参数 --epoch：是否想写 --epochs？"]),
        (["train", ".", "--lr", "fast"], ["错误 E102", "optim.lr"]),
        (["train", "nowhere"], ["错误 E201", "不存在 "]),
        (["train", "EMPTY"], ["错误 E201", "中没有图像", "应为：按类别命名的文件夹"]),
        (["evaluate", "nowhere"], ["错误 E"]),
        (["evaluate"], ["用法：kiln evaluate", "错误：缺少参数 'RUN_OR_MODEL'。"]),
        (["export", "m", "--opset", "x"], ["错误：'--opset' 的取值无效：应为整数"]),
        (["train", "PHOTOS", "--device", "cuda"], ["错误 E109：本机没有这个设备"]),
        (["resume", "EMPTY"], ["错误 E105", "不是运行目录"]),
        (["train", "PHOTOS", "--output", "RUNS", "--name", "one"], ["错误 E105", "中已有一次运行", "换一个 --name"]),
        (
            ["resume", "RUN", "--set", "optim.lr=1"],
            ["错误 E106：续训时给出了不同的设置", "该运行开始时用的是另外的设置"],
        ),
        (["push", "RUN", "one"], ["错误 E102", "仓库 = 'one'"]),
    ],
)
def test_errors_teach_in_chinese(run, tmp_path, arguments, words):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    made, _ = run
    places = {"EMPTY": tmp_path, "RUN": made.path, "RUNS": made.path.parent, "PHOTOS": made.recipe.data.path}
    said = command(*(places.get(word, word) for word in arguments), "--lang", "zh")
    assert said.status != 0
    assert [word for word in words if word not in said.err] == [], said.err
    assert english_in(said.err.splitlines()[0]) == []


def test_the_language_is_that_of_one_command_only(run, monkeypatch):
    assert current() == "en"
    assert command("trian").err.startswith("error E101: unknown verb")
    monkeypatch.setenv("KILN_LANG", "zh")
    assert command("trian").err.startswith("错误 E101")
    assert command("trian", "--lang", "en").err.startswith("error E101: unknown verb")
    assert command("--lang", "fr").err == "error E101: unknown language 'fr'\n  choices: en, zh\n"
    monkeypatch.setenv("KILN_LANG", "fr")
    assert "unknown language 'fr'" in command("--help").err


def test_several_processes_speak_it_too(run, tmp_path):
    made, _ = run
    said = command(
        "train",
        made.recipe.data.path,
        *FLAGS,
        "--processes",
        "2",
        "--lang",
        "zh",
        "--output",
        tmp_path,
        "--name",
        "two",
    )
    assert said.status == 0, said.err
    log = (tmp_path / "two" / "log.txt").read_text()
    assert log.startswith("数据")
    assert english_in(log) == []


def test_a_sentence_takes_the_pattern_with_the_most_letters():
    with speaking("zh"):
        assert translated("a/b is damaged: its description is not JSON") == "a/b 已损坏：其描述不是 JSON"
        assert translated("a/b is damaged: cut") == "a/b 已损坏：cut"
        assert translated("3,781 images") == "3,781 张图像"
        assert translated("two images") == "two images"
        assert translated(
            "Invalid value for '--x': " + "Input should be a valid integer, unable to parse string as an integer"
        ) == ("'--x' 的取值无效：应为整数，无法解析")
    assert translated("3,781 images") == "3,781 images"


def test_json_of_a_wrong_flag_keeps_its_code():
    said = command("evaluate", "--json", "--lang", "zh")
    assert json.loads(said.out)["error"]["code"] == "E101"
