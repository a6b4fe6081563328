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


_PLACE = re.compile(r"(?<![\w./:\\~-])(?:~?(?:/[^\s/'\",;:()\[\]]+)+/?|[A-Za-z]:\\[^\s'\",;:()\[\]]+)")


def without_places(text: str) -> str:
    """A text with the absolute paths in it cut down to their last part: where files lie on a machine is its owner's matter.

    An absolute path that is the whole text may hold blanks; addresses of the web stay.
    """
    if re.match(r"~?/|[A-Za-z]:\\", text) and "\n" not in text and not re.search(r"\s[~/]", text):
        return _last_part(text)
    return _PLACE.sub(lambda found: _last_part(found[0]), text)


def places_in(text: str) -> set[str]:
    """The absolute paths that a text names."""
    return {found[0].rstrip("/") for found in _PLACE.finditer(text)}


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
