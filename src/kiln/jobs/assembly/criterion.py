"""A recipe's `loss` becomes a module that fits the task's targets, before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kiln import losses
from kiln.errors import KilnError, UsageError
from kiln.jobs.assembly.resolve import Settings, chosen_samples
from kiln.jobs.intake import Indices, Intake
from kiln.losses.modules import Loss
from kiln.names import LOSSES, OBJECT, load_object
from kiln.recipe.loss_text import AUTO, TAKES, parse_loss, reaches

TRIED_SAMPLES = 4


def make_loss(settings: Settings, intake: Intake, model: nn.Module, *, mixed: bool) -> nn.Module:
    """The loss that training makes small: the task's own, a named one, a sum, or the user's; on the run's device.

    Args:
        settings: the section `loss`; computed weights are written back.
        intake: the task and its targets.
        model: what penalties on weights look at.
        mixed: whether mixup or cutmix makes shares of the targets.
    Raises: UsageError: it does not fit the targets, cannot have its batch cut, or a setting has no effect.
    """
    asked = settings["loss.name"]
    text = intake.task.loss if asked == AUTO else asked
    terms, train = parse_loss(text), chosen_samples(settings, intake)
    options = {"smoothing": settings["loss.smoothing"], **_weights(settings, intake, train)}
    for name in [name for name in options if not reaches(name, terms)]:
        if name != "smoothing":
            what = f"loss.{name} has no effect with the loss {text!r}"
            raise UsageError("E103", what, expected=f"a loss that takes it ({', '.join(TAKES[name])})")
        del options[name]
    loss = losses.make(text, **options).to(settings["run.device"])
    for part in loss.modules():
        attach: Any = getattr(part, "attach", None)
        if attach is not None:
            attach(model)
    if OBJECT in text:
        settings.reasons["loss.name"] = "an object from Python: who resumes gives it again; exactness E0"
    _check_targets(loss, intake.task.target_kind(mixed=mixed), mixed)
    _check_cut(loss, text, settings)
    _check_parameters(loss)
    targets = _targets(intake, train[:TRIED_SAMPLES], mixed).to(settings["run.device"])
    _try(loss, text, targets, intake.task.num_outputs(intake.classes))
    return loss


class LossState:
    """What a loss of the user's own remembers (its buffers), as a part of the state."""

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss

    def state(self) -> dict[str, Tensor]:
        """The buffers, by name."""
        return self.loss.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put them back."""
        self.loss.load_state_dict(state)


def _weights(settings: Settings, intake: Intake, train: Indices) -> dict[str, Any]:
    """The weights of classes and of labels, those that are asked for; what was counted becomes a setting."""
    class_weights, pos_weight = settings["loss.class_weights"], settings["loss.pos_weight"]
    num_outputs = intake.task.num_outputs(intake.classes)
    counts = [int(count) for count in intake.task.class_counts(intake.targets[train], num_outputs)]
    if isinstance(class_weights, str) and class_weights != "none":
        made = losses.weights_from_counts(counts, class_weights)
        settings.decide("loss.class_weights", made, f"{class_weights}, by the {len(train):,} training samples")
    if pos_weight == "inverse":
        made = losses.positive_weights(counts, len(train))
        settings.decide("loss.pos_weight", made, f"negatives / positives of the {len(train):,} training samples")
    found = {}
    for name, least in (("class_weights", num_outputs), ("pos_weight", 1)):
        values = settings[f"loss.{name}"]
        if values == "none":
            continue
        if len(values) not in (least, num_outputs):
            raise UsageError(
                "E103",
                f"loss.{name} has {len(values)} numbers",
                expected=f"{num_outputs}, one for each of {', '.join(intake.classes[:10])}",
            )
        found[name] = list(values)
    return found


def _check_targets(loss: nn.Module, kind: str, mixed: bool) -> None:
    """Raises: UsageError: a loss of Kiln's that is made for other targets than the task has."""
    for part in loss.modules():
        if isinstance(part, Loss) and kind not in part.takes:
            fitting = [name for name, target in LOSSES.items() if kind in load_object(target).takes]
            mixing = mixed and kind == "shares"
            raise UsageError(
                "E103",
                f"the loss {type(part).__name__} takes {' or '.join(sorted(part.takes))}, and the targets are {kind}",
                choices=fitting,
                hint="leave augment.mixup and augment.cutmix out: they make shares of classes" if mixing else "",
            )


def _check_cut(loss: nn.Module, text: str, settings: Settings) -> None:
    """Raises: UsageError: micro-batches of a loss that looks at the batch as a whole."""
    micro, batch = settings["training.micro_batch_size"], settings["training.batch_size"]
    if losses.is_coupled(loss) and isinstance(micro, int) and micro < batch:
        raise UsageError(
            "E103",
            f"training.micro_batch_size = {micro} cuts batches of {batch}, and the loss {text!r} couples their samples",
            expected="no micro_batch_size, or another loss",
            hint="dice, tversky and jaccard can be cut without per_batch",
        )


def _check_parameters(loss: nn.Module) -> None:
    """Raises: UsageError: a loss that would have to learn, which no optimizer would see to."""
    learning = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
    if learning:
        raise UsageError(
            "E103",
            f"the loss has trainable parameters ({', '.join(learning[:3])}), and they are in no optimizer group",
            hint="make them part of the model, or buffers of the loss",
        )


def _targets(intake: Intake, chosen: Indices, mixed: bool) -> Tensor:
    targets = torch.from_numpy(np.asarray(intake.targets[chosen]))
    return intake.task.soften(targets, intake.task.num_outputs(intake.classes)) if mixed else targets


def _try(loss: nn.Module, text: str, targets: Tensor, num_outputs: int) -> None:
    """Call a loss once, with the targets of some training samples, so that what does not fit is told before the first step.

    Raises: UsageError: it fails, or gives no gradient.
    """
    outputs = torch.linspace(-1, 1, len(targets) * num_outputs, device=targets.device)
    outputs = outputs.view(len(targets), num_outputs).requires_grad_()
    kept = {name: value.clone() for name, value in loss.state_dict().items()}
    try:
        values = losses.as_terms(loss(outputs, targets), len(targets)).values
    except KilnError:
        raise
    except Exception as error:
        raise UsageError(
            "E107",
            f"the loss {text!r} fails on outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}: "
            f"{type(error).__name__}: {error}",
            hint=f"try it alone: kiln check-loss {text!r}",
        ) from error
    finally:
        loss.load_state_dict(kept)
    if not values.requires_grad:
        raise UsageError("E107", f"the loss {text!r} has no gradient with respect to the outputs")
