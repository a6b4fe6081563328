"""Keep secrets out of what is written down: reports, logs, recorded environments."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(
    r"token|secret|passw|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization", re.I
)
_ASSIGNED = re.compile(
    rf"((?:[\w-]*(?:{_SECRET_NAME.pattern})[\w-]*)['\"]?\s*[=:]\s*['\"]?)(?:Bearer\s+)?[^\s'\",&]+", re.I
)
_KNOWN_FORMS = re.compile(
    r"\b(?:hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[a-z]-[\w-]{10,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_SHORTEST = 6  # shorter values of secret variables are words that stand everywhere


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """A text without the secrets that it may hold.

    Hides tokens of known forms, passwords in URLs, what is assigned to a name like `token`, and the values of
    environment variables with such names.
    """
    variables = os.environ if environment is None else environment
    secrets = {value for name, value in variables.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _IN_URL.sub(HIDDEN, _KNOWN_FORMS.sub(HIDDEN, text))
    return _ASSIGNED.sub(rf"\g<1>{HIDDEN}", text)


def redact_arguments(arguments: Iterable[str]) -> list[str]:
    """Command-line arguments without secrets, also where the value follows its flag: `--hub-token VALUE`."""
    shown, hide_next = [], False
    for argument in arguments:
        shown.append(HIDDEN if hide_next else redact(argument))
        hide_next = argument.startswith("-") and "=" not in argument and bool(_SECRET_NAME.search(argument))
    return shown
