"""What can be wrong with a loss, one function per fault; each says what it saw on an `Example`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from kiln.losses.contract import as_terms, is_coupled
from kiln.losses.examples import EMBEDDINGS, LABELS, MASKS, VALUES, Example, make_example

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "FAIL"
EXTREME = 1e4
SIZES = {LABELS: (5.0, 10.0, 20.0, 28.0), VALUES: (2.0, 10.0, 100.0)}
HALF_SIZES = (2.5, 5.0, 10.0, 14.0)  # of softmax losses: what counts is the distance between two logits
HALF_TOLERANCE = 0.02
FADED = 1e-3
"""A gradient that is a smaller part than this of that of mildly wrong outputs hardly teaches anything."""
NOT_FOR_EMBEDDINGS = ("silenced", "compared")
"""Their gradient has no part along them, and no usual loss stands beside them."""
Loss = Callable[[Any, Any], Any]
Seen = tuple[str, str]
"""A verdict and its detail."""


@dataclass(frozen=True)
class Finding:
    """What one check of a loss saw.

    Attributes:
        check: its name.
        verdict: `ok`, `note` (a measurement), `warn` (works, but know it) or `FAIL`.
        detail: what was seen, in one line.
    """

    check: str
    verdict: str
    detail: str


def mean_of(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of a batch as a step would count it: a scalar."""
    copy = outputs if outputs.requires_grad else outputs.clone()  # a loss may change what it is given
    values, weights = as_terms(loss(copy, targets.clone()), len(outputs))
    if weights is None:
        return values.mean()
    total = weights.sum()  # 0 where all is ignored; a step leaves such a batch out
    return (values * weights).sum() / torch.where(total > 0, total, 1.0)


def value_and_gradient(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and its gradient with respect to the outputs; nothing is left behind."""
    outputs = outputs.detach().clone().requires_grad_()
    value = mean_of(loss, outputs, targets)
    (gradient,) = torch.autograd.grad(value, outputs, allow_unused=True)
    return value.detach(), torch.zeros_like(outputs) if gradient is None else gradient


def look(loss: Loss, example: Example) -> Iterator[Finding]:
    """What each check sees; whatever the loss raises is a failure of that check."""
    for name, check in CHECKS.items():
        if example.kind == EMBEDDINGS and name in NOT_FOR_EMBEDDINGS:
            continue
        try:
            verdict, detail = check(loss, example)
        except Exception as error:  # noqa: BLE001 (of the user's own)
            verdict, detail = FAIL, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        yield Finding(name, verdict, detail)


def _inputs(loss: Loss, example: Example) -> Seen:
    outputs, targets = example.outputs.clone(), example.targets.clone()
    loss(outputs, targets)
    changed = [
        name
        for name, now, before in (("outputs", outputs, example.outputs), ("targets", targets, example.targets))
        if not torch.equal(now, before)
    ]
    detail = f"changes its {' and '.join(changed)} in place" if changed else "left as they were"
    return (FAIL if changed else OK, detail)


def _repeats(loss: Loss, example: Example) -> Seen:
    first, second = (mean_of(loss, example.outputs, example.targets).item() for _ in range(2))
    same = first == second
    return (OK if same else WARN, "same value twice" if same else f"{first:.6g}, then {second:.6g}")


def _parameters(loss: Loss, example: Example) -> Seen:  # noqa: ARG001 - one signature for all
    """Training refuses a loss that would have to learn, so a check that passed it would be wrong."""
    named = loss.named_parameters() if isinstance(loss, nn.Module) else ()
    learning = [name for name, parameter in named if parameter.requires_grad]
    if learning:
        what = f"{', '.join(learning[:3])} would have to be trained, and training refuses that"
        return (FAIL, f"{what}: make it part of the model, or a buffer of the loss")
    return (OK, "none that would have to be trained")


def _gradient(loss: Loss, example: Example) -> Seen:
    outputs = example.outputs.clone().requires_grad_()
    value = mean_of(loss, outputs, example.targets)
    if not value.requires_grad:
        return (FAIL, "none reaches the outputs (argmax, detach, or a new tensor on the way?)")
    if not value_and_gradient(loss, outputs, example.targets)[1].any():
        return (FAIL, "0 everywhere")
    coarse = value.dtype != torch.float64
    eps, atol, rtol = (1e-2, 1e-2, 2e-2) if coarse else (1e-6, 1e-6, 1e-4)
    note = f" (coarsely: it computes in {str(value.dtype).removeprefix('torch.')})" if coarse else " in float64"
    try:
        torch.autograd.gradcheck(
            lambda x: mean_of(loss, x, example.targets).double(), (outputs,), eps=eps, atol=atol, rtol=rtol
        )
    except RuntimeError as error:  # GradcheckError is one
        return (FAIL, f"is not the derivative of the value: {_worst(str(error))}")
    return (OK, f"the derivative of the value{note}")


def _worst(message: str) -> str:
    return next((line.strip() for line in message.splitlines() if line.strip()), "gradcheck")


def levels(loss: Loss, example: Example) -> tuple[float, float, float]:
    """The loss of right, random and wrong outputs."""
    size = 4.0
    several = (example.right(size), example.outputs, example.wrong(size))
    right, between, wrong = (mean_of(loss, outputs, example.targets).item() for outputs in several)
    return right, between, wrong


def falls(loss: Loss, example: Example) -> bool:
    """Whether better outputs have a smaller loss; among bad embeddings there is no order."""
    right, between, wrong = levels(loss, example)
    return right < between < wrong if example.kind != EMBEDDINGS else right < min(between, wrong)


def _direction(loss: Loss, example: Example) -> Seen:
    right, between, wrong = levels(loss, example)
    detail = f"right {right:.4g}, random {between:.4g}, wrong {wrong:.4g}"
    return (OK, detail) if falls(loss, example) else (FAIL, f"does not fall with better outputs: {detail}")


def _extremes(loss: Loss, example: Example) -> Seen:
    bad = []
    for name, outputs in (("right", example.right(EXTREME)), ("wrong", example.wrong(EXTREME))):
        bad += _not_finite(loss, outputs.float(), example.targets, f"{name} by 1e4")
    return (FAIL if bad else OK, "; ".join(bad) or "value and gradient finite at +-1e4, float32")


def _edges(loss: Loss, example: Example) -> Seen:
    bad = _not_finite(loss, example.right(30.0).float(), example.targets, "perfect outputs")
    if example.kind == VALUES:
        bad += _not_finite(loss, torch.zeros_like(example.outputs), example.empty(), "zeros for zeros")
    bad += _not_finite(loss, example.outputs.float(), example.empty(), "empty targets")
    outputs = torch.zeros_like(example.outputs) if example.kind == VALUES else _only_background(example)
    bad += _not_finite(loss, outputs.float(), example.empty(), "empty targets, nothing predicted")
    return (FAIL if bad else OK, "; ".join(bad) or "value and gradient finite")


def _only_background(example: Example) -> Tensor:
    outputs = torch.full_like(example.outputs, -200.0)
    if example.kind != LABELS and not example.is_binary:
        outputs[:, 0] = 200.0
    return outputs


def _not_finite(loss: Loss, outputs: Tensor, targets: Tensor, when: str) -> list[str]:
    if targets.is_floating_point():
        targets = targets.to(outputs.dtype)
    value, gradient = value_and_gradient(loss, outputs, targets)
    parts = (("value", value), ("gradient", gradient))
    bad = [name for name, part in parts if not bool(torch.isfinite(part).all())]
    return [f"{' and '.join(bad)} not finite: {when}"] if bad else []


def _silenced(loss: Loss, example: Example) -> Seen:
    """A gradient of exactly 0 for outputs that are plainly wrong: a clamp has cut it off, and nothing is learnt there.

    Also where it is 0 in float32 alone, the precision of training: `log(sigmoid(x))` in two steps rounds to 0 or 1 there
    long before it does in float64. Positions without any gradient from the start are left out: they are ignored.
    """
    sizes = SIZES[LABELS] if example.is_binary else SIZES.get(example.kind, HALF_SIZES)
    mild = value_and_gradient(loss, example.wrong(1.0), example.targets)[1]
    counted = _counted(loss, example, mild)
    first = mild.abs().max().item()
    last = first
    for size in sizes:
        gradient = value_and_gradient(loss, example.wrong(size), example.targets)[1]
        coarse = value_and_gradient(loss, example.wrong(size).float(), _single(example.targets))[1]
        lost = (coarse == 0) & (gradient.abs() > FADED * first)
        for zeros, where in ((gradient == 0, ""), (lost, " in float32")):
            zero = (zeros & counted).double().mean().item()
            if zero > 0:
                wrong = f"gradient is 0{where} for {zero:.0%} of the outputs that are wrong by {size:g}"
                return (FAIL, f"{wrong} (a clamp, or p rounded to 0 or 1)")
        last = gradient.abs().max().item()
    if last < FADED * first:
        detail = f"gradient fades: wrong by {sizes[-1]:g} it is {last / first:.0e} of that at 1; add another loss"
        return (WARN, detail)
    ignored = 1 - counted.double().mean().item()
    if ignored and not _says_ignored(loss):
        return (WARN, f"{ignored:.0%} of the outputs have no gradient, right or wrong: are they meant to be ignored?")
    return (
        OK,
        f"wrong outputs have a gradient, up to {sizes[-1]:g} away" + (f"; {ignored:.0%} ignored" if ignored else ""),
    )


def _counted(loss: Loss, example: Example, mild: Tensor) -> Tensor:
    """Whether the loss looks at an output's position (or sample) at all; with one output per position it must say so."""
    if mild.shape[1] == 1 and not _says_ignored(loss):
        return torch.ones_like(mild, dtype=torch.bool)
    gradients = (mild, value_and_gradient(loss, example.outputs, example.targets)[1])
    seen = [(gradient != 0).any(1, keepdim=True) for gradient in gradients]
    return (seen[0] | seen[1]).expand_as(mild)


def _says_ignored(loss: Loss) -> bool:
    """Whether a part of the loss has an `ignore_index`: ours among its settings, torch's as an attribute."""
    parts = list(loss.modules()) if isinstance(loss, nn.Module) else []
    own = [getattr(part, "settings", None) or {} for part in parts]
    stated = [settings.get("ignore_index") for settings in own] + [
        getattr(part, "ignore_index", None) for part in parts
    ]
    return any(one is not None for one in stated)


def _single(targets: Tensor) -> Tensor:
    return targets.float() if targets.is_floating_point() else targets


def _scale(loss: Loss, example: Example) -> Seen:
    """Whether the loss of a batch is a mean: the batch twice over has the same."""
    once = mean_of(loss, example.outputs, example.targets).item()
    twice = mean_of(loss, example.outputs.repeat(2, *[1] * (example.outputs.ndim - 1)), _twice(example.targets)).item()
    ratio = twice / once if once else float(twice == once)
    if abs(ratio - 2) < 0.05:
        return (FAIL, "doubling the batch doubles it: a sum; average over the samples")
    if abs(ratio - 1) > 0.05 and not is_coupled(loss):
        return (FAIL, f"doubling the batch makes it {ratio:.4g} times as large")
    return (OK, "a mean over the samples" if abs(ratio - 1) < 0.05 else f"coupled: {ratio:.3g} times for two")


def _twice(targets: Tensor) -> Tensor:
    return targets.repeat(2, *[1] * (targets.ndim - 1))


def _cut(loss: Loss, example: Example) -> Seen:
    """Whether the mean over micro-batches is that of the batch."""
    if is_coupled(loss):
        return (NOTE, "coupled, as it says: never cut into micro-batches")
    num, total, weight = len(example.outputs), 0.0, 0.0
    for start, stop in ((0, 3), (3, num)):
        part = example.part(start, stop)
        values, weights = as_terms(loss(part.outputs, part.targets), stop - start)
        weights = torch.ones_like(values) if weights is None else weights
        total, weight = total + (values * weights).sum().item(), weight + weights.sum().item()
    whole = mean_of(loss, example.outputs, example.targets).item()
    cut = total / weight if weight else float("nan")
    if abs(cut - whole) <= 1e-5 * max(abs(whole), 1e-12):
        return (OK, "micro-batches have the mean of the batch")
    return (
        WARN,
        f"whole {whole:.6g}, in two parts {cut:.6g}: say coupled = True, or return LossTerms (docs/losses.md)",
    )


def _half(loss: Loss, example: Example, dtype: torch.dtype) -> Seen:
    """Outputs of a model under autocast: large logits, and for masks as many positions as pictures have."""
    if example.kind == MASKS or example.outputs.ndim > 2:
        shape = (example.outputs.shape[1], 320, 320)
        example = make_example(example.kind, shape=shape, num_samples=1)
    outputs = (10 * example.outputs if example.kind != VALUES else example.outputs).to(dtype)
    targets = example.targets.float() if example.targets.is_floating_point() else example.targets
    value, gradient = value_and_gradient(loss, outputs, targets)
    reference, _ = value_and_gradient(loss, outputs.float(), targets)
    if not bool(torch.isfinite(value)) or not bool(torch.isfinite(gradient).all()):
        return (FAIL, f"value {value.item():.4g} (float32: {reference.item():.4g}): raise it by .float() first")
    error = abs(value.item() - reference.item()) / max(abs(reference.item()), 1e-12)
    if error > HALF_TOLERANCE:
        detail = (
            f"{value.item():.4g}, float32 {reference.item():.4g}, {error:.0%} off: raise the outputs by .float() first"
        )
        return (FAIL, detail)
    return (OK, f"within {error:.1e} of float32")


def _compared(loss: Loss, example: Example) -> Seen:
    name, standard = example.standard
    value, gradient = value_and_gradient(loss, example.outputs, example.targets)
    usual, direction = value_and_gradient(standard, example.outputs, example.targets)
    if usual == 0 or not direction.any():
        return (NOTE, f"not compared: {name} is 0 on these outputs, whatever they are")
    cosine = torch.cosine_similarity(gradient.flatten().double(), direction.flatten(), dim=0).item()
    detail = f"value {value.item() / usual.item():.3g} times {name}, gradient's cosine with it {cosine:.3f}"
    return (NOTE if cosine > 0 else FAIL, detail if cosine > 0 else f"{detail}: against it")


def _speed(loss: Loss, example: Example) -> Seen:
    larger = make_example(example.kind, shape=tuple(example.outputs.shape[1:]), num_samples=256)
    targets = larger.targets.float() if larger.targets.is_floating_point() else larger.targets
    name, standard = example.standard
    taken = [_seconds(one, larger.outputs.float(), targets) for one in (loss, standard)]
    return (NOTE, f"{taken[0] * 1e6:,.0f} us for 256 samples, {taken[0] / taken[1]:.1f} times {name}")


def _seconds(loss: Loss, outputs: Tensor, targets: Tensor) -> float:
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        value_and_gradient(loss, outputs, targets)
        taken.append(time.perf_counter() - start)
    return median(taken)


CHECKS: dict[str, Callable[[Loss, Example], Seen]] = {
    "inputs": _inputs,
    "repeats": _repeats,
    "parameters": _parameters,
    "gradient": _gradient,
    "direction": _direction,
    "extreme outputs": _extremes,
    "perfect, empty": _edges,
    "silenced": _silenced,
    "scale": _scale,
    "cut": _cut,
    "bfloat16": partial(_half, dtype=torch.bfloat16),
    "float16": partial(_half, dtype=torch.float16),
    "compared": _compared,
    "speed": _speed,
}
"""In the order in which a person would want to know."""
