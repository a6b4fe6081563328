"""A loss as text: `cross_entropy`, `focal(gamma=1.5)`, `cross_entropy + 0.5*dice(smooth=1)`, `mine.py:Loss(scale=2)`.

A sum of terms; a term is a name, with settings in parentheses, and a number that it is multiplied with. Nothing is
evaluated: settings are plain values. Names are those of `kiln.names.LOSSES`, or the user's own as module:name.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kiln.errors import UsageError
from kiln.names import LOSSES
from kiln.recipe.check import Problem

AUTO = "auto"
EXPECTED = "a sum such as cross_entropy + 0.5*dice(smooth=1), of names or module:name"
ELSEWHERE = {
    **dict.fromkeys(("ce", "softmax", "soft_target_cross_entropy", "crossentropyloss", "nll"), "cross_entropy"),
    **dict.fromkeys(("bce", "bcewithlogitsloss", "sigmoid"), "binary_cross_entropy"),
    **dict.fromkeys(("smooth_l1", "smoothl1loss", "huberloss"), "huber"),
    **dict.fromkeys(("l1", "l1loss"), "mae"),
    **dict.fromkeys(("l2", "mseloss"), "mse"),
    **dict.fromkeys(("iou", "jaccard_loss"), "jaccard"),
    **dict.fromkeys(("supcon", "contrastive"), "supervised_contrastive"),
    "asl": "asymmetric",
    "gdl": "generalized_dice",
}
"""What losses are called elsewhere, for the suggestion."""

TAKES = {
    "smoothing": ("cross_entropy", "binary_cross_entropy", "binary_focal", "asymmetric", "asymmetric_softmax", "poly1"),
    "class_weights": ("cross_entropy", "focal", "poly1", "dice", "tversky", "jaccard", "generalized_dice"),
    "pos_weight": ("binary_cross_entropy",),
}
"""Fields of the section `loss` besides its name, and the losses that they reach. A test holds the losses to it."""

_OWN_NAME = re.compile(r"(?:[A-Za-z]:[\\/])?[\w./\\~-]+:[A-Za-z_][\w.]*")
_BARE_NAME = re.compile(r"[^+*()]+:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Term:
    """One term of a sum: `factor * name(**settings)`."""

    name: str
    factor: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)


def parse_loss(text: str) -> tuple[Term, ...]:
    """The terms of a loss.

    Raises: UsageError: no such sum, or a name that is neither known nor module:name.
    """
    if _BARE_NAME.fullmatch(text.strip()):
        return (Term(text.strip()),)
    own: list[str] = []

    def stand_in(found: re.Match[str]) -> str:
        own.append(found[0])
        return f"_own_{len(own) - 1}_"

    replaced = _OWN_NAME.sub(stand_in, text)
    try:
        tree = ast.parse(replaced.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError("E102", f"loss {text!r} cannot be read", expected=EXPECTED) from error
    return tuple(_term(part, text, own) for part in _parts(tree, ast.Add))


def _parts(node: ast.expr, operator: type[ast.operator]) -> list[ast.expr]:
    """What a chain of one operator joins, from left to right."""
    parts = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, operator):
        parts.append(node.right)
        node = node.left
    return [node, *reversed(parts)]


def _term(node: ast.expr, text: str, own: list[str]) -> Term:
    product = _parts(node, ast.Mult)
    numbers = [number for part in product if (number := _number(part)) is not None]
    if len(product) != len(numbers) + 1:
        raise _unreadable(node, text, own, "a number times a loss")
    (node,) = (part for part in product if _number(part) is None)
    factor = math.prod(numbers, start=1.0)
    if not 0 < factor < math.inf:
        raise UsageError("E102", f"loss {text!r}: the factor {factor:g}", expected="a finite number > 0")
    settings: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        if node.args:
            raise _unreadable(node.args[0], text, own, "settings by name, as in dice(smooth=1)")
        settings = {_word(part): _value(part.value, text, own) for part in node.keywords}
        node = node.func
    if not isinstance(node, ast.Name):
        raise _unreadable(node, text, own, EXPECTED)
    name = _restored(node.id, own)
    if name not in LOSSES and ":" not in name:
        raise UsageError(
            "E108",
            f"unknown loss {name!r}",
            got=ELSEWHERE.get(name.lower(), name),
            choices=sorted(LOSSES),
            hint="or your own, as module:name",
        )
    return Term(name, factor, settings)


def _number(node: ast.expr) -> float | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _word(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise UsageError("E102", "a loss takes settings by name, not **", expected=EXPECTED)
    return keyword.arg


def _value(node: ast.expr, text: str, own: list[str]) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise _unreadable(node, text, own, "a number, text, true or false as True or False, None or a list") from error
    return _restored(value, own) if isinstance(value, str) else value


def _restored(text: str, own: list[str]) -> str:
    return re.sub(r"_own_(\d+)_", lambda found: own[int(found[1])], text)


def _unreadable(node: ast.expr, text: str, own: list[str], expected: str) -> UsageError:
    return UsageError("E102", f"loss {text!r}: {_restored(ast.unparse(node), own)!r}", expected=expected)


def reaches(setting: str, terms: tuple[Term, ...]) -> bool:
    """Whether a setting of the section `loss` has an effect on some term, which may have its own instead."""
    return any(term.name in TAKES[setting] and setting not in term.settings for term in terms)


def code_in(text: str) -> tuple[str, ...]:
    """The user's own code that a loss names, as module:name."""
    try:
        return tuple(term.name for term in parse_loss(text) if ":" in term.name)
    except UsageError:
        return (text,) if ":" in text else ()


def find_loss_problems(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a recipe's loss: it cannot be read, or a setting beside it reaches none of its terms."""
    text, terms = values["loss.name"], ()
    if text != AUTO:
        try:
            terms = parse_loss(text)
        except UsageError as error:
            yield Problem(error.code, f"loss.name: {error.what}", error.expected, error.suggestion or "", error.choices)
            return
    for setting, takers in TAKES.items():
        name = f"loss.{setting}"
        if terms and values[name] != defaults[name] and not reaches(setting, terms):
            what = f"{name} = {_shown(values[name])} has no effect with loss.name = {text!r}"
            yield Problem("E103", what, expected=f"a loss that takes it ({', '.join(takers)}), or no {name}")
    weights, sampler = values["loss.class_weights"], values["data.sampler"]
    if isinstance(weights, str) and weights != "none" and sampler in ("weighted", "balanced"):
        what = f"loss.class_weights = {weights!r} with data.sampler = {sampler!r} makes up for small classes twice"
        yield Problem("E103", what, expected="one of the two")


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)
