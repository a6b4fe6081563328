"""Which parameter is trained at which rate and with which decay.

A group is a dict as torch's optimizers take it, with `names` (the parameters' names in its order), `base_lr` (which
schedules multiply) and `name` (for people) beside the settings.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kiln.errors import UsageError, closest
from kiln.optim.layers import layer_ids, undecayed_names

Rules = Mapping[str, Mapping[str, Any]]
GROUP_KEYS = ("params", "names", "name", "lr", "base_lr", "weight_decay", "algorithm")
"""What a group holds beside an optimizer's own settings."""


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    rules: Rules | None = None,
    layer_decay: float = 1.0,
    head: Sequence[str] = (),
    head_lr: float = 1.0,
) -> list[dict[str, Any]]:
    """Every trainable parameter in exactly one group, as few groups as the settings need; frozen ones in none.

    Biases, parameters of norm layers, anything below 2-d, and what the model itself exempts (`no_weight_decay()` of
    timm's models; position embeddings and class tokens elsewhere) are never decayed.

    Args:
        model: its parameter names are what patterns match.
        lr: the base rate.
        weight_decay: of everything that is decayed at all.
        rules: settings by name pattern, the first pattern that fits a parameter counts. A pattern is a module's or a
            parameter's name (`layer4`), a wildcard (`*.attn.*`), or `re:` and a regular expression that is searched for.
            Settings are `lr` (a rate, whatever else would scale it), `lr_factor` (of the rate it would have),
            `weight_decay` (of the decayed ones among them), or any other that the optimizer keeps by group (`betas`,
            `momentum`).
        layer_decay: factor of the rate from each layer to the one below it, in (0, 1]; the top layer has the full rate.
            Source: Clark et al. 2020, arXiv:2003.10555, as timm does it.
        head: names of the modules that make the output.
        head_lr: factor of their rate.
    Raises: UsageError: nothing is trainable; a rule or setting is wrong or has no effect.
    """
    _check_factors(layer_decay=layer_decay, head_lr=head_lr)
    rules = {pattern: _checked_rule(pattern, settings) for pattern, settings in (rules or {}).items()}
    layers = layer_ids(model) if layer_decay != 1.0 else {}
    undecayed = undecayed_names(model)
    groups: dict[Any, dict[str, Any]] = {}
    effects = _Effects(rules, layer_decay=layer_decay, head_lr=head_lr)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern = next((pattern for pattern in rules if matches(pattern, name)), None)
        rule = dict(rules[pattern]) if pattern is not None else {}
        in_head = any(matches(part, name) for part in head)
        factor = rule.pop("lr_factor", 1.0) * (head_lr if in_head else 1.0)
        if layers:
            factor *= layer_decay ** (max(layers.values()) - layers[name])
        rate = rule.pop("lr", lr * factor)
        decay = rule.pop("weight_decay", weight_decay)
        effects.saw(pattern, in_head=in_head, decayed=name not in undecayed)
        parts = [pattern or ("head" if in_head and head_lr != 1.0 else "")]
        parts += [f"layer {layers[name]}"] if layers else []
        title = " ".join(filter(None, parts)) or "all"
        if name in undecayed:
            title, decay = title if decay == 0 else f"{title}, no decay", 0.0
        key = (rate, decay, *sorted((k, repr(v)) for k, v in rule.items()))
        group = groups.setdefault(
            key,
            {"params": [], "names": [], "name": title, "lr": rate, "base_lr": rate, "weight_decay": decay, **rule},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UsageError("E107", "the model has no trainable parameter")
    effects.check(model)
    return list(groups.values())


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of a rule fits a parameter's name."""
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return name == pattern or name.startswith(f"{pattern}.")


def describe_groups(groups: Sequence[Mapping[str, Any]], *, num_examples: int = 2) -> list[dict[str, Any]]:
    """A row per group, for people: name, rate, decay, own settings, how many parameters in how many tensors, examples."""
    rows = []
    keys = sorted({key for group in groups for key in group} - set(GROUP_KEYS[:-1]))
    differing = [key for key in keys if len({repr(group.get(key)) for group in groups}) > 1]
    for group in groups:
        own = {key: group[key] for key in differing if key in group}
        names = list(group["names"])
        more = f", and {len(names) - num_examples} more" if len(names) > num_examples else ""
        rows.append(
            {
                "group": group.get("name", ""),
                "lr": group.get("base_lr", group["lr"]),
                "weight_decay": group.get("weight_decay", 0.0),
                "settings": own,
                "parameters": sum(parameter.numel() for parameter in group["params"]),
                "tensors": len(names),
                "names": ", ".join(names[:num_examples]) + more,
            }
        )
    return rows


def check_groups(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Hold that every trainable parameter is in exactly one group, and no frozen one in any.

    Raises: UsageError: with the names at fault.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: dict[int, int] = {}
    for group in groups:
        for parameter in group["params"]:
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    problems = [f"trainable, but in no group: {names[i]}" for i in trainable - set(seen)]
    problems += [
        f"frozen, but in a group: {names.get(i, 'a parameter of another model')}" for i in set(seen) - trainable
    ]
    problems += [f"in {count} groups: {names.get(i, '?')}" for i, count in seen.items() if count > 1]
    if problems:
        raise UsageError(
            "E107", f"{len(problems)} parameters do not fit the optimizer's groups", details=sorted(problems)[:20]
        )


def _check_factors(**values: float) -> None:
    for name, value in values.items():
        largest = 1.0 if name == "layer_decay" else float("inf")
        if not 0 < value <= largest:
            expected = "above 0, at most 1" if name == "layer_decay" else "above 0"
            raise UsageError("E102", f"{name} = {value!r}", expected=expected)


def _checked_rule(pattern: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A rule's settings, lists as tuples."""
    place = f"the group {pattern!r}"
    if not isinstance(settings, Mapping) or not settings:
        raise UsageError("E102", f"{place} = {settings!r}", expected="settings, such as {lr_factor: 0.1}")
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise UsageError("E102", f"{place} is not a regular expression: {error}") from error
    if wrong := [key for key in settings if key in GROUP_KEYS and key not in ("lr", "weight_decay")]:
        raise UsageError(
            "E101", f"{place} sets {wrong[0]!r}", expected="lr, lr_factor, weight_decay, or betas and such"
        )
    for key in ("lr", "lr_factor", "weight_decay"):
        value = settings.get(key, 1.0)
        if not _is_number(value) or not 0 <= value < math.inf:
            raise UsageError("E102", f"{key} = {value!r} in {place}", expected="a finite number, at least 0")
    _check_decays(place, settings)
    if "lr" in settings and "lr_factor" in settings:
        raise UsageError("E103", f"lr and lr_factor in {place}", expected="one of them")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def _check_decays(place: str, settings: Mapping[str, Any]) -> None:
    """Hold that momentum and betas are what every optimizer takes them for; none of torch's looks at those of groups."""
    if "momentum" in settings and not _is_share(momentum := settings["momentum"]):
        raise UsageError("E102", f"momentum = {momentum!r} in {place}", expected="a number, at least 0, below 1")
    betas = settings.get("betas", ())
    if not isinstance(betas, list | tuple) or not all(map(_is_share, betas)):
        expected = "numbers, each at least 0 and below 1, such as [0.9, 0.999]"
        raise UsageError("E102", f"betas = {betas!r} in {place}", expected=expected)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


class _Effects:
    """Remembers what each setting did, to refuse one that did nothing."""

    def __init__(self, rules: Rules, *, layer_decay: float, head_lr: float) -> None:
        self._rules, self._head_lr, self._layer_decay = rules, head_lr, layer_decay
        self._decayed: dict[str, bool] = {}
        self._heads: set[bool] = set()

    def saw(self, pattern: str | None, *, in_head: bool, decayed: bool) -> None:
        """A trainable parameter under a rule, or under none."""
        if pattern is not None:
            self._decayed[pattern] = self._decayed.get(pattern, False) or decayed
        self._heads.add(in_head)

    def check(self, model: nn.Module) -> None:
        """Raises: UsageError: a rule that fits nothing, or a setting that changed nothing."""
        for pattern, settings in self._rules.items():
            if pattern not in self._decayed:
                names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
                parts = list(dict.fromkeys(prefix for name in names for prefix in _prefixes(name)))
                fits = [name for name in names if matches(pattern, name)]
                why = "an earlier pattern takes all that it fits" if fits else "it fits no trainable parameter"
                meant = closest(pattern.strip("*."), parts)
                raise UsageError(
                    "E103",
                    f"the group {pattern!r} has no effect: {why}",
                    hint=f"did you mean {meant}?" if meant and not fits else "",
                )
            if "weight_decay" in settings and not self._decayed[pattern]:
                what = f"weight_decay = {settings['weight_decay']!r} has no effect in the group {pattern!r}"
                raise UsageError("E103", what, expected="parameters that are decayed: it holds biases and norms only")
        if self._head_lr != 1.0 and True not in self._heads:
            raise UsageError(
                "E103", f"head_lr = {self._head_lr!r} has no effect: no parameter of the head is trainable"
            )


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
