"""The lines that a training begins with: what was found, what was decided and why."""

from __future__ import annotations

from kiln.jobs.assemble import Training
from kiln.jobs.intake import Intake
from kiln.jobs.resolve import Settings
from kiln.observe.progress import Progress

SHOWN = (
    *("model.name", "model.img_size", "data.channels", "training.batch_size", "optim.lr", "training.precision"),
    *("training.drop_last", "data.workers", "run.device"),
)


def describe(training: Training, settings: Settings, intake: Intake, progress: Progress) -> None:
    """Say what the run is about to do; every decision is also in `resolved.yaml`."""
    split, say = intake.split, progress.say
    counts = ", ".join(f"{name} {len(part):,}" for name, part in split.parts().items() if len(part))
    say(f"data       {intake.source.where}: {len(intake.source):,} images, {len(intake.classes)} classes ({counts})")
    if not intake.source.splits or "val" not in intake.source.splits:
        reached = ", ".join(f"{name} {share:.1%}" for name, share in split.reached.items() if share)
        say(f"split      cut by the hash of names, so roughly: {reached}")
    for note in (*intake.notes, *training.created.notes):
        say(f"note       {note}")
    if intake.source.transformed:
        say("note       the data come already transformed: augmentation on the device is off")
    parameters = sum(parameter.numel() for parameter in training.state.model.parameters())
    spec = training.created.spec
    say(f"model      {spec.name}, {parameters / 1e6:.2f} M parameters, {spec.img_size} px, {spec.channels} channels")
    for name in SHOWN:
        if name in settings.reasons:
            say(f"decided    {name} = {settings.values[name]}: {settings.reasons[name]}")
    epochs = training.total_steps / len(training.batches)
    say(f"training   {epochs:g} epochs of {len(training.batches)} steps of {settings.values['training.batch_size']}")
    say(f"exactness  {exactness(training, settings)}")


def exactness(training: Training, settings: Settings) -> str:
    """Which class of exactness a resume of this run has, and why."""
    if settings.values["data.path"] is None:
        return "E0, best effort: a Dataset object may hold randomness of its own"
    if training.state.device.type == "cpu" or settings.values["run.determinism"] == "strict":
        return "E2: killed and resumed on this machine, the run ends the same, bit for bit"
    return "E1: killed and resumed, same samples and augmentations, losses within 1e-5 (E2 by --set run.determinism=strict)"
