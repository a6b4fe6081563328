"""Secrets do not reach what is written down."""

import pytest

from kiln.redact import HIDDEN, redact, redact_arguments

SECRETS = [
    "hf_" + "a1B2" * 8,
    "ghp_" + "x" * 36,
    "sk-" + "k" * 40,
    "AKIA" + "A" * 16,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.SflKxwRJSM",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_tokens_of_known_forms(secret):
    shown = redact(f"before {secret}, after", {})
    assert shown == f"before {HIDDEN}, after"


@pytest.mark.parametrize(
    "text",
    [
        "HF_TOKEN=s3cr3tvalue", "token: s3cr3tvalue", '{"api_key": "s3cr3tvalue"}', "password='s3cr3tvalue'",
        "https://user:s3cr3tvalue@host/x", "Authorization: Bearer s3cr3tvalue", "?access_key=s3cr3tvalue&x=1",
    ],
)  # fmt: skip
def test_what_is_assigned_to_a_telling_name(text):
    shown = redact(text, {})
    assert "s3cr3tvalue" not in shown
    assert HIDDEN in shown


def test_values_of_secret_variables_wherever_they_stand():
    environment = {"MY_SECRET": "hunter2hunter2", "HOME": "/home/me", "API_KEY": "abc"}
    assert redact("x hunter2hunter2 y /home/me abc", environment) == f"x {HIDDEN} y /home/me abc"


def test_innocent_text_stays():
    text = "kiln train photos/ --model resnet18 --set training.epochs=5 https://host/path key value: 3"
    assert redact(text, {}) == text


def test_a_value_after_its_flag():
    assert redact_arguments(["--hub-token", "abc", "--epochs", "5", "--token=abc"]) == [
        "--hub-token", HIDDEN, "--epochs", "5", f"--token={HIDDEN}",
    ]  # fmt: skip
