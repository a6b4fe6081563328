"""The lines that a training begins with: what was found, what was decided and why."""

from __future__ import annotations

from kiln.data.sampler import Foreign
from kiln.data.storage import counted, shown
from kiln.data.transform import TransformedImages, takes_rng
from kiln.jobs.assemble import Training
from kiln.jobs.intake import Intake
from kiln.jobs.resolve import Settings
from kiln.names import OBJECT
from kiln.observe.memory import memory_in_use, state_by_part
from kiln.observe.progress import Progress
from kiln.recipe.finetune_text import HEAD_MODES

SHOWN = (
    *("model.name", "model.img_size", "data.channels", "training.batch_size", "optim.lr", "training.precision"),
    *("training.drop_last", "data.workers", "run.device"),
)
FEATURES = ("finetune.views", "finetune.cache_features", "checkpoint.every")
MOST_CLASSES_SHOWN = 8


def describe(training: Training, settings: Settings, intake: Intake, progress: Progress) -> None:
    """Say what the run is about to do; every decision is also in `resolved.yaml`."""
    split, say = intake.split, progress.say
    counts = ", ".join(f"{name} {len(part):,}" for name, part in split.parts().items() if len(part))
    say(f"data       {intake.source.where}: {counted(len(intake.source), 'image')} ({counts})")
    classes = f"{counted(len(intake.classes), 'class')}: {shown(intake.classes, MOST_CLASSES_SHOWN)}"
    say(f"task       {intake.task.name}, {classes}")
    if len(split.train) < len(intake.source) and "val" not in (intake.source.splits or ()):
        reached = ", ".join(f"{name} {share:.1%}" for name, share in split.reached.items() if share)
        say(f"split      cut by the hash of names, so roughly: {reached}")
    for note in (*intake.notes, *training.created.notes):
        say(f"note       {note}")
    taking_part = len(training.batches.batches.sampler)
    if taking_part != len(split.train):
        say(f"note       an epoch is {taking_part:,} of the {counted(len(split.train), 'training sample')}")
    if len(split.val) == 0:
        say("note       nothing to validate on: the last weights are kept, and no best is chosen")
    spec = training.created.spec
    sizes = f"{spec.img_size} px, {counted(spec.channels, 'channel')}"
    say(f"model      {spec.name}, {num_parameters(training)} parameters, {sizes}")
    for line in fine_tuning(training):
        say(f"training   {line}")
    if settings.values["finetune.freeze_norm"] == "statistics" and (
        why := settings.reasons.get("finetune.freeze_norm")
    ):
        say(f"decided    finetune.freeze_norm = statistics: {why}")
    of_features = FEATURES if settings.values["finetune.mode"] in HEAD_MODES else ()
    for name in (*of_features, *SHOWN):
        if name in settings.reasons:
            say(f"decided    {name} = {as_set(settings.values[name])}: {settings.reasons[name]}")
    epochs = training.total_steps / len(training.batches)
    length = f"{epochs:g} epoch{'' if epochs == 1 else 's'} of {counted(len(training.batches), 'step')}"
    batch = counted(min(settings.values["training.batch_size"], len(split.train)), "image")
    say(f"training   {length}, {batch} a step")
    say(f"exactness  {exactness(training, settings)}")


def describe_use(training: Training, progress: Progress) -> None:
    """What the run took, at its end: memory by part, into `log.txt`; and steps that fp16 cost."""
    state = training.state
    parts = [f"{name} {_mib(size)}" for name, size in state_by_part(state.model, state.optimizer).items()]
    use = memory_in_use(state.device)
    line = f"{', '.join(parts)}; process {_mib(use.resident_peak)} at most"
    if use.allocated_peak is not None and use.reserved is not None and use.fragmented is not None:
        device = f"{_mib(use.allocated_peak)} at most, {_mib(use.reserved)} reserved, {_mib(use.fragmented)} in pieces"
        line = f"{line}; device {device}"
    progress.note_down(f"memory     {line}")
    if training.step.scaler is not None:
        steps, scale = counted(training.step.scaler.num_overflows, "step"), float(training.step.scaler.scale)
        progress.say(f"fp16       {steps} skipped because a gradient overflowed; the loss scale is {scale:g}")


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
    lines = [
        f"{stages.stage.name}: {trained:,} of {total:,} parameters; {stages.num_frozen} tensors frozen, statistics among them"
    ]
    return lines + [
        f"{stage.name} from step {stage.first_step:,} of {training.total_steps:,} on, at {stage.rate:g} times the rate"
        for stage in stages.stages
        if stage.first_step > training.state.step
    ]


def proofs(training: Training) -> list[str]:
    """What was proved of the frozen part when training ended."""
    state = training.state
    return [
        f"frozen     {entry['tensors']} tensors are as they were when {entry['stage']} began: SHA-256 {entry['sha256']}"
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
