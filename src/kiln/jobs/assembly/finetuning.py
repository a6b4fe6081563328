"""A recipe's `finetune` becomes adapters, stages and a pull towards the starting weights."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from kiln.engine.stages import Stage, Stages
from kiln.engine.starting_point import StartingPoint
from kiln.errors import ArtifactError, UsageError
from kiln.jobs.assembly.optimization import make_optimizer
from kiln.jobs.assembly.resolve import Settings
from kiln.models.blocks import ordered_blocks, running_norms
from kiln.models.create import Created, seeded_init
from kiln.models.lora import ADAPTERS, add_lora_
from kiln.models.sizes import dry_forward
from kiln.models.surgery import last_layer
from kiln.recipe.finetune_text import parse_stage


def adapt_(settings: Settings, created: Created) -> None:
    """Put LoRA's adapters into the model, where they are asked for. Before it moves to its device."""
    options = {name: settings[f"finetune.lora_{name}"] for name in ("rank", "alpha", "targets")}
    if settings["finetune.mode"] == "lora":
        with seeded_init(settings["training.seed"]):
            add_lora_(created.model, head=output_layer(created), **options)


def make_stages(settings: Settings, created: Created, *, total_steps: int, steps_per_epoch: int) -> Stages | None:
    """What is trained from when; None where everything is, all the time. Freezes the model for the first stage.

    Raises: UsageError: a stage that begins after the run's end (E103), or that does not fit the model.
    """
    mode, model = settings["finetune.mode"], created.model
    settings["finetune.random_weights"]  # read when the recipe was checked
    frozen = _frozen_norms(settings, model)
    texts = settings["finetune.stages"]
    if mode == "full" and not frozen:
        return None
    if mode == "staged":
        stages = []
        for text in texts:
            said = parse_stage(text)
            first = said.first.to_steps(steps_per_epoch=steps_per_epoch, total_steps=total_steps)
            if first >= total_steps:
                what = f"the stage {text!r} begins at step {first}, and the run ends after {total_steps}"
                raise UsageError("E103", what, expected="an earlier stage, or a longer run")
            stages.append(Stage(said.trains, first, said.rate, said.layer_decay))
    else:
        stages = [Stage({"full": ("all",), "lora": (*ADAPTERS, "head")}.get(mode, (mode,)))]

    def optimizer(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
        decay, several = stage.layer_decay, len(stages) > 1
        return make_optimizer(settings, model, rate=stage.rate, layer_decay=decay, rules_may_wait=several)

    made = Stages(model, stages, optimizer, also_frozen=frozen, head=output_layer(created))
    _require_loaded(created, made.frozen[-1])
    return made


def make_starting_point(settings: Settings, created: Created) -> StartingPoint | None:
    """The pull towards the starting weights, if there is one. Call before anything is trained."""
    strength, head_strength = settings["finetune.l2_sp"], settings["finetune.l2_head"]
    if not strength:
        return None
    head = ordered_blocks(created.model, head=output_layer(created))[-1].atoms
    return StartingPoint(created.model, strength=strength, head=head, head_strength=head_strength)


def output_layer(created: Created) -> str | None:
    """The layer that makes the output, where the order of registration may not tell: in the user's own code."""
    spec = created.spec
    if ":" not in spec.name:
        return None
    return last_layer(created.model, lambda: dry_forward(created.model, channels=spec.channels, img_size=spec.img_size))


def _require_loaded(created: Created, frozen: Collection[str]) -> None:
    """Hold that what is never trained came out of the weight file.

    Raises: ArtifactError (E304): it did not, and would stay random to the end.
    """
    report = created.report
    if report is None:
        return
    names = {name.replace(".base_layer.", ".") for name in frozen}
    random = sorted(name for name in report.anew & names if not name.endswith("num_batches_tracked"))
    if random:
        raise ArtifactError(
            "E304",
            f"{len(random)} tensors that fine-tuning keeps frozen are not in {report.source}, and would stay random",
            details=random[:20],
            hint="weights of this very architecture, or finetune.mode = staged or full, which train them",
        )


def _frozen_norms(settings: Settings, model: nn.Module) -> tuple[str, ...]:
    """Words for what of the norm layers stays frozen throughout.

    Raises: UsageError: the model has no layers with running statistics.
    """
    what, norms = settings["finetune.freeze_norm"], running_norms(model)
    if what == "none":
        return ()
    if not norms:
        if "finetune.freeze_norm" in settings.reasons:
            settings.decide("finetune.freeze_norm", "none", "no layer keeps running statistics")
            return ()
        raise UsageError("E103", f"finetune.freeze_norm = {what!r} has no effect: no layer keeps running statistics")
    return ("norms",) if what == "all" else ("statistics",)
