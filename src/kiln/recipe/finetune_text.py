"""Fine-tuning as text: the mode, and stages such as `top(2) from 20% at 0.5 decay 0.8`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kiln.errors import UsageError, closest
from kiln.recipe.check import Problem
from kiln.recipe.duration import Duration

MODES = ("full", "head", "top(n)", "staged", "lora")
HEAD_MODES = ("head", "staged")
"""Where the head is trained while all before it stands still."""
_TOP = re.compile(r"top\([1-9]\d*\)")
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_STAGE = re.compile(rf"(?P<what>.+?)(?:\s+from\s+(?P<first>\S+))?(?:\s+at\s+{_NUMBER})?(?:\s+decay\s+{_NUMBER})?")
_EXPECTED = "WHAT [from WHEN] [at RATE] [decay FACTOR], such as head at 10, or top(2) + norms from 20% at 0.5"


@dataclass(frozen=True)
class StageText:
    """One stage as it was written: what is trained, from when, at which factor of the rate, smaller by how much a layer."""

    trains: tuple[str, ...]
    first: Duration
    rate: float = 1.0
    layer_decay: float = 1.0


def parse_stage(text: str) -> StageText:
    """Read a stage; without `from` it begins with the run.

    Raises: UsageError: it cannot be read.
    """
    found = _STAGE.fullmatch(text.strip())
    words = tuple(word.strip() for word in found["what"].split("+")) if found else ()
    if found is None or not all(words) or any(" " in word for word in words):
        raise UsageError("E102", f"stage {text!r}", expected=_EXPECTED)
    first = Duration.parse(found["first"] or "0steps")
    rate, decay = (1.0 if number is None else float(number) for number in found.groups()[2:])
    if first.seconds is not None:
        raise UsageError("E102", f"stage {text!r} begins at a time", expected="epochs, steps or %: 3ep, 100steps, 20%")
    if not rate or not 0 < decay <= 1:
        raise UsageError("E102", f"stage {text!r}", expected="a rate above 0, and a decay above 0 and at most 1")
    return StageText(words, first, rate, decay)


def find_finetune_problems(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a recipe's fine-tuning: a mode or stage that cannot be, a setting without effect."""
    mode = values["finetune.mode"]
    if mode not in MODES and not _TOP.fullmatch(mode):
        yield Problem("E101", f"finetune.mode = {mode!r}", meant=closest(mode, MODES) or "", choices=MODES)
        return
    yield from _without_effect(values, defaults, mode)
    yield from _view_problems(values, mode)
    yield from _on_random_weights(values, mode)
    if values["finetune.stages"]:
        yield from _stage_problems(values["finetune.stages"])


def _without_effect(values: Mapping[str, Any], defaults: Mapping[str, Any], mode: str) -> Iterator[Problem]:
    deciders = {"stages": "staged", "lora_rank": "lora", "lora_alpha": "lora", "lora_targets": "lora"}
    for name, needed in deciders.items():
        if values[f"finetune.{name}"] != defaults[f"finetune.{name}"] and mode != needed:
            what = f"finetune.{name} has no effect with finetune.mode = {mode!r}"
            yield Problem("E103", what, expected=f"finetune.mode = {needed}, or no finetune.{name}")
    if mode == "head" and values["optim.layer_decay"] != 1:
        what = f"optim.layer_decay = {values['optim.layer_decay']:g} has no effect with finetune.mode = 'head'"
        yield Problem("E103", what, expected="another mode: the head is one layer")
    if values["finetune.l2_head"] and not values["finetune.l2_sp"]:
        yield Problem(
            "E103", "finetune.l2_head has no effect without finetune.l2_sp", expected="both, or optim.weight_decay"
        )
    if values["finetune.l2_sp"] and mode in ("head", "lora"):
        what = f"finetune.l2_sp = {values['finetune.l2_sp']:g} has no effect with finetune.mode = {mode!r}"
        yield Problem("E103", what, expected="full, top(n) or staged: otherwise the backbone does not move")
    if values["finetune.freeze_norm"] != "auto" and mode in ("head", "lora"):
        what = f"finetune.freeze_norm has no effect with finetune.mode = {mode!r}, where norms are frozen"
        yield Problem("E103", what, expected="full, top(n) or staged, or no finetune.freeze_norm")


def why_no_views(values: Mapping[str, Any]) -> str | None:
    """Why the frozen part cannot see a few views of each image alone; None where it can.

    Args:
        values: every field of a recipe by its full name.
    """
    if values["augment.mixup"] or values["augment.cutmix"]:
        return "augment.mixup and augment.cutmix make other images of them in every batch"
    if values["augment.first_px"] is not None:
        return f"augment.first_px = {values['augment.first_px']} lets images grow from step to step"
    if values["data.repeats"] > 1:
        return f"data.repeats = {values['data.repeats']} augments a sample in several ways in one epoch"
    if values["data.collate"] != "stack":
        return f"with data.collate = {values['data.collate']!r} an image depends on its batch"
    if values["training.swa_start"] is not None:
        return "training.swa_start measures running statistics on images in the end"
    return None


def _view_problems(values: Mapping[str, Any], mode: str) -> Iterator[Problem]:
    views, cache = values["finetune.views"], values["finetune.cache_features"]
    asked = [f"finetune.views = {views}"] if views != "auto" else []
    asked += [f"finetune.cache_features = {cache!r}"] if cache != "auto" else []
    if asked and mode not in HEAD_MODES:
        what = f"{asked[0]} has no effect with finetune.mode = {mode!r}"
        yield Problem("E103", what, expected="head or staged, where the head is trained alone")
    elif cache == "on" and views == 0:
        what = "finetune.cache_features = 'on' with finetune.views = 0, which draws augmentation anew in each epoch"
        yield Problem("E103", what, expected="finetune.views above 0, such as 4")
    elif (cache == "on" or views not in ("auto", 0)) and (why := why_no_views(values)):
        wanted = asked[0] if views not in ("auto", 0) else asked[-1]
        yield Problem("E103", f"{wanted}, but {why}", expected="one of the two")


def _on_random_weights(values: Mapping[str, Any], mode: str) -> Iterator[Problem]:
    asked = [f"finetune.mode = {mode!r}"] if mode != "full" else []
    asked += [f"finetune.l2_sp = {values['finetune.l2_sp']:g}"] if values["finetune.l2_sp"] else []
    norm = values["finetune.freeze_norm"]
    asked += ["finetune.head_start = 'fitted'"] if values["finetune.head_start"] == "fitted" else []
    asked += [f"finetune.freeze_norm = {norm!r}"] if norm not in ("auto", "none") else []
    random = values["model.weights"] == "none" and ":" not in values["model.name"]  # the user's code may load its own
    if asked and random and not values["finetune.random_weights"]:
        what = f"{asked[0]} with model.weights = 'none' would keep random weights as they are"
        yield Problem(
            "E103", what, expected="model.weights = pretrained, a file or hf-hub:NAME, or random_weights = true"
        )
    if values["finetune.random_weights"] and not (asked and random):
        what = "finetune.random_weights has no effect: no random weights are kept"
        yield Problem("E103", what, expected="no finetune.random_weights")


def _stage_problems(texts: Sequence[str]) -> Iterator[Problem]:
    stages = []
    for text in texts:
        try:
            stages.append(parse_stage(text))
        except UsageError as error:
            yield Problem(error.code, f"finetune.stages: {error.what}", expected=error.expected)
            return
    if stages[0].first.value:
        yield Problem(
            "E102", f"finetune.stages = {list(texts)}", expected="a first stage without from: it begins the run"
        )
    for (one, before), (other, after) in pairwise(zip(texts, stages, strict=True)):
        if after.first.value == 0 or (
            after.first.unit == before.first.unit and after.first.value <= before.first.value
        ):
            what = f"finetune.stages out of order: {other!r} after {one!r}"
            yield Problem("E102", what, expected="each stage later than the one before")
