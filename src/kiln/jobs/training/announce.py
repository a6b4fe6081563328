"""The lines that a training begins with: what was found, what was decided and why."""

from __future__ import annotations

from kiln.data.sampler import Foreign
from kiln.data.storage import counted, shown
from kiln.data.transform import TransformedImages, takes_rng
from kiln.jobs.assembly.assemble import Training
from kiln.jobs.assembly.resolve import Settings
from kiln.jobs.intake import Intake
from kiln.language import tr, word
from kiln.language.patterns import translated
from kiln.names import OBJECT
from kiln.observe.memory import memory_in_use, state_by_part
from kiln.observe.progress import Progress
from kiln.observe.wording import amount
from kiln.recipe.finetune_text import HEAD_MODES

SHOWN = (
    *("model.name", "model.img_size", "data.channels", "training.batch_size", "optim.lr", "training.precision"),
    *("training.drop_last", "data.workers", "run.device"),
)
FEATURES = ("finetune.views", "finetune.cache_features", "checkpoint.every")
MOST_CLASSES_SHOWN = 8
FEW_TO_VALIDATE_ON, FEW_OF_A_CLASS = 50, 10
"""Fewer validation images, in all or by class, are said to be few: of 50 an accuracy is known to 14 points to each side."""


def describe(training: Training, settings: Settings, intake: Intake, progress: Progress) -> None:
    """Say what the run is about to do; every decision is also in `resolved.yaml`."""
    split, say = intake.split, progress.say
    counts = tr(", ").join(f"{word(name)} {len(part):,}" for name, part in split.parts().items() if len(part))
    images = amount(len(intake.source), "image")
    say(tr("data       {where}: {images} ({counts})", where=intake.source.where, images=images, counts=counts))
    classes, named = amount(len(intake.classes), "class"), shown(intake.classes, MOST_CLASSES_SHOWN)
    say(tr("task       {task}, {classes}: {named}", task=word(intake.task.name), classes=classes, named=named))
    if len(split.train) < len(intake.source) and "val" not in (intake.source.splits or ()):
        reached = tr(", ").join(f"{word(name)} {share:.1%}" for name, share in split.reached.items() if share)
        if settings.values["data.folds"]:
            fold, folds = settings.values["data.fold"] or 1, settings.values["data.folds"]
            say(tr("split      fold {fold} of {folds} is held out: {reached}", fold=fold, folds=folds, reached=reached))
        else:
            say(tr("split      cut by the hash of names, so roughly: {reached}", reached=reached))
    for note in (*intake.notes, *training.created.notes):
        say(tr("note       {note}", note=translated(note)))
    taking_part = len(training.batches.batches.sampler)
    if taking_part != len(split.train):
        samples = amount(len(split.train), "training sample")
        say(tr("note       an epoch is {taking_part:,} of the {samples}", taking_part=taking_part, samples=samples))
    if len(split.val) == 0:
        say(tr("note       nothing to validate on: the last weights are kept, and no best is chosen"))
    elif not settings.values["data.folds"] and len(split.val) < max(
        FEW_TO_VALIDATE_ON, FEW_OF_A_CLASS * len(intake.classes)
    ):
        told = "note       validation has {images}: its numbers are uncertain; --folds 5 judges every image"
        say(tr(told, images=amount(len(split.val), "image")))
    spec = training.created.spec
    told = "model      {name}, {number} parameters, {img_size} px, {channels}"
    channels = amount(spec.channels, "channel")
    say(tr(told, name=spec.name, number=num_parameters(training), img_size=spec.img_size, channels=channels))
    for line in fine_tuning(training):
        say(tr("training   {what}", what=translated(line)))
    if settings.values["finetune.freeze_norm"] == "statistics" and (
        why := settings.reasons.get("finetune.freeze_norm")
    ):
        say(
            tr(
                "decided    {name} = {value}: {why}",
                name="finetune.freeze_norm",
                value="statistics",
                why=translated(why),
            )
        )
    stages = training.state.stages
    of_features = FEATURES if settings.values["finetune.mode"] in HEAD_MODES and stages and stages.num_frozen else ()
    if settings.values["finetune.mode"] == "staged":
        of_features = ("finetune.head_start", *of_features)
    for name in (*of_features, *SHOWN):
        if name in settings.reasons:
            value, why = as_set(settings.values[name]), translated(settings.reasons[name])
            say(tr("decided    {name} = {value}: {why}", name=name, value=value, why=why))
    epochs = training.total_steps / len(training.batches)
    length = f"{epochs:g} epoch{'' if epochs == 1 else 's'} of {counted(len(training.batches), 'step')}"
    batch = amount(min(settings.values["training.batch_size"], len(split.train)), "image")
    say(tr("training   {length}, {batch} a step", length=translated(length), batch=batch))
    say(tr("exactness  {promise}", promise=translated(exactness(training, settings))))


def describe_use(training: Training, progress: Progress) -> None:
    """What the run took, at its end: memory by part, into `log.txt`; and steps that fp16 cost."""
    state = training.state
    parts = [f"{word(name)} {_mib(size)}" for name, size in state_by_part(state.model, state.optimizer).items()]
    use = memory_in_use(state.device)
    said = {"parts": tr(", ").join(parts), "peak": _mib(use.resident_peak)}
    line = tr("{parts}; process {peak} at most", **said)
    if use.allocated_peak is not None and use.reserved is not None and use.fragmented is not None:
        sizes = [_mib(size) for size in (use.allocated_peak, use.reserved, use.fragmented)]
        told = "{line}; device {peak} at most, {reserved} reserved, {fragmented} in pieces"
        line = tr(told, line=line, peak=sizes[0], reserved=sizes[1], fragmented=sizes[2])
    progress.note_down(tr("memory     {line}", line=line))
    if training.step.scaler is not None:
        steps, scale = amount(training.step.scaler.num_overflows, "step"), float(training.step.scaler.scale)
        told = "fp16       {steps} skipped because a gradient overflowed; the loss scale is {scale:g}"
        progress.say(tr(told, steps=steps, scale=scale))


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


def num_parameters(training: Training) -> str:
    """How many weights there are, as people say it: `1,396`, `11.18 M`."""
    number = sum(parameter.numel() for parameter in training.state.model.parameters())
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.2f} M"


def fine_tuning(training: Training) -> list[str]:
    """What is frozen in the present stage, and when that changes; nothing where all is trained all the time."""
    stages, parameters = training.state.stages, list(training.state.model.parameters())
    if stages is None:
        return []
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    lines = [f"{stages.stage.name}: {trained:,} of {total:,} parameters"]
    if stages.num_frozen:
        lines = [f"{lines[0]}; {stages.num_frozen} tensors frozen, statistics among them"]
    elif stages.stage.layer_decay < 1:
        lines = [f"{lines[0]}, each layer at {stages.stage.layer_decay:g} times the rate of the one above"]
    return lines + [
        f"{stage.name} from step {stage.first_step:,} of {training.total_steps:,} on, at {stage.rate:g} times the rate"
        for stage in stages.stages
        if stage.first_step > training.state.step
    ]


def proofs(training: Training) -> list[str]:
    """What was proved of the frozen part when training ended."""
    state = training.state
    return [
        tr(
            "frozen     {tensors} tensors are as they were when {stage} began: SHA-256 {digest}",
            tensors=entry["tensors"],
            stage=translated(entry["stage"]),
            digest=entry["sha256"],
        )
        for entry in state.log
        if entry["what"] == "frozen_unchanged" and entry["step"] == state.step
    ]


def as_set(value: object) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_set, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def exactness(training: Training, settings: Settings) -> str:
    """Which class of exactness a resume of this run has, and why."""
    if settings.values["data.path"] is None:
        return "E0, best effort: a Dataset object may hold randomness of its own"
    images, sampler = training.batches.batches.assembler.images, training.batches.batches.sampler.sampler
    if isinstance(images, TransformedImages) and not takes_rng(images.transform):
        return "E0, best effort: the transform may hold randomness of its own (one with a parameter rng is exact)"
    if ":" in settings.values["data.collate"]:
        return "E0, best effort: the collate function may hold randomness of its own"
    if OBJECT in settings.values["loss.name"]:
        return "E0, best effort: the loss is an object, which a resume must be given again"
    if isinstance(sampler, Foreign):
        return "E0, best effort: the sampler is your own"
    if training.state.device.type == "cpu" or settings.values["run.determinism"] == "strict":
        return "E2: killed and resumed on this machine, the run ends the same, bit for bit"
    return "E1: killed and resumed, same samples and augmentations, losses within 1e-5 (E2 by --set run.determinism=strict)"
