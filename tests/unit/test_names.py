"""Short names: resolved late, the closest suggested, code named by a file only when trusted."""

import sys

import pytest

from kiln import names
from kiln.errors import SecurityError, UsageError
from kiln.names import load_object, load_trusted, resolve


def test_a_name_is_module_and_attribute():
    assert load_object("os.path:join") is __import__("os").path.join
    assert load_object("collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}


def test_a_file_of_the_users_own(tmp_path):
    (tmp_path / "mine.py").write_text("def loss(outputs, targets):\n    return 42\n")
    path_before = list(sys.path)
    assert load_object(f"{tmp_path}/mine.py:loss")(1, 2) == 42
    assert sys.path == path_before
    assert "mine" not in sys.modules


@pytest.mark.parametrize("target", ["os.path", ":join", "os.path:", ""])
def test_half_a_name(target):
    with pytest.raises(UsageError, match="is not module:name"):
        load_object(target)


def test_the_closest_attribute_is_suggested():
    with pytest.raises(UsageError, match="'json' has no 'dump_s'") as caught:
        load_object("json:dump_s")
    assert caught.value.suggestion == "dumps"


def test_a_module_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="cannot import 'no_such_module'"):
        load_object("no_such_module:thing")
    with pytest.raises(UsageError, match="no such file: "):
        load_object(f"{tmp_path}/absent.py:thing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local.py").write_text("thing = 1\n")
    with pytest.raises(UsageError, match=r"name the file instead: local\.py:thing"):
        load_object("local:thing")


def test_an_error_inside_the_users_module_is_theirs(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_object(f"{tmp_path}/broken.py:thing")


def test_code_named_by_a_file_needs_trust():
    with pytest.raises(SecurityError, match=r"model\.safetensors names the code 'os:system'") as caught:
        load_trusted("os:system", ("os:getcwd",), named_by="model.safetensors")
    assert caught.value.code == "E701"
    assert "--trust os:system" in str(caught.value)
    assert load_trusted("os:getcwd", ("os:getcwd",), named_by="model.safetensors") is __import__("os").getcwd


def test_resolve_knows_the_table_and_the_users_own():
    assert resolve(names.LOSSES, "cross_entropy", kind="loss").__name__ == "CrossEntropy"
    assert resolve(names.LOSSES, "json:dumps", kind="loss") is __import__("json").dumps
    with pytest.raises(UsageError, match="unknown loss 'cross_entrop'") as caught:
        resolve(names.LOSSES, "cross_entrop", kind="loss")
    assert caught.value.suggestion == "cross_entropy"
    assert "choices: asymmetric, asymmetric_softmax, binary_cross_entropy, " in str(caught.value)


@pytest.mark.parametrize("table", ["TASKS", "LOSSES"])
def test_every_short_name_leads_somewhere(table):
    entries = getattr(names, table)
    assert len(entries) >= 2
    assert all(callable(load_object(target)) for target in entries.values())
