"""A new head that begins where the frozen backbone's features lead it, instead of at random.

A random head sends gradients without meaning into the backbone until it has learnt, and in a short training most steps go
into that (Kumar et al. 2022, arXiv:2202.10054). Features cost one pass over the training images, without gradients; a
head is fitted to them in a moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiln.data.loader import Assembler, evaluation_batches
from kiln.engine.features import EvaluationFeatures
from kiln.errors import UsageError
from kiln.jobs.assembly.batches import Pipeline
from kiln.jobs.assembly.features import bytes_of_a_sample, probe
from kiln.jobs.assembly.resolve import Settings, chosen_samples, decide_stages
from kiln.jobs.intake import Intake
from kiln.losses.contract import as_terms
from kiln.models.blocks import ordered_blocks, running_norms, select
from kiln.models.create import Created
from kiln.models.features import FeatureCut, find_cut
from kiln.models.freeze import frozen_atoms, set_frozen
from kiln.models.sizes import mode
from kiln.random import Purpose, keys_of, torch_seed
from kiln.runtimes import BATCH_SIZE

MOST_SAMPLES, MOST_BYTES = 20_000, 1 << 30
"""More samples than this would cost time and tell a linear layer nothing; more memory than this is not worth it."""
STEPS, SIZE, RATE, DECAY = 200, 64, 0.01, 0.05
"""Of AdamW under a cosine."""


def settle_first_head(settings: Settings, pipeline: Pipeline, *, head: str | None) -> FeatureCut | None:
    """Where the head to be fitted begins; None where `finetune.head_start` is, or has to be, random.

    Call before the model is frozen for its first stage.

    Raises: UsageError: a fitted head was asked for and cannot be.
    """
    if settings["finetune.head_start"] != "fitted":
        return None
    model = pipeline.created.model
    why = None if _is_new(pipeline.created, head) else "the weights hold a head for these classes"
    before = frozen_atoms(model)
    try:
        if why is None:
            set_frozen(model, select(model, ("backbone",), ordered_blocks(model, head=head)))
            return find_cut(model, probe(settings, pipeline))
    except UsageError as error:
        why = error.what
    finally:
        set_frozen(model, before)
    if "finetune.head_start" not in settings.reasons:
        raise UsageError("E103", f"finetune.head_start = 'fitted', but {why}", hint="leave it at auto")
    settings.decide("finetune.head_start", "random", why)
    if "finetune.stages" in settings.reasons and _is_new(pipeline.created, head):
        decide_stages(settings)
    return None


def fit_head_(
    settings: Settings,
    intake: Intake,
    pipeline: Pipeline,
    cut: FeatureCut,
    *,
    forward: Callable[..., Tensor],
    loss: nn.Module,
    head: str | None,
) -> None:
    """Fit the head to the backbone's features of training images.

    Args:
        settings: of the training.
        intake: its data.
        pipeline: its model and images.
        cut: where the head begins.
        forward: images -> logits, in the mode that the model is in.
        loss: of logits and targets.
        head: name of the output layer, where the order of registration may not tell.
    """
    model, device = pipeline.created.model, torch.device(settings["run.device"])
    most = min(MOST_SAMPLES, max(SIZE, MOST_BYTES // bytes_of_a_sample(settings, pipeline, cut)))
    samples = _drawn(settings, intake, most)
    images = evaluation_batches(
        Assembler(pipeline.validation, intake.targets),
        samples,
        batch_size=BATCH_SIZE,
        bad_files=pipeline.bad_files,
        split="train",
        skip_bad=True,
        workers=settings["data.workers"],
    )
    norms = running_norms(model) if settings["finetune.freeze_norm"] == "none" else ()
    several = (batch for batch in images if len(batch) > 1 or not norms)  # one image has no variance
    before = frozen_atoms(model)
    try:
        with mode(model, training=False):
            with _by_batch(model, norms):
                made = EvaluationFeatures(cut).batches(model, several, forward=forward, device=device)
            set_frozen(model, select(model, ("backbone",), ordered_blocks(model, head=head)))
            if made:  # where no image can be read, whoever counts bad files will say so
                targets = torch.cat([batch.targets for batch in made])
                if pipeline.batches.mixing is not None:  # the loss may take no others than mixed batches have
                    targets = intake.task.soften(targets, intake.task.num_outputs(intake.classes))
                features = torch.cat([batch.images for batch in made]).float()
                _fit(model, cut, features, targets, loss, seed=settings["training.seed"])
    finally:
        set_frozen(model, before)


@contextmanager
def _by_batch(model: nn.Module, norms: Collection[str]) -> Iterator[None]:
    """Within, these layers normalise by their batch, as they will in training; statistics stay as they were.

    Images unlike those of the weights have other statistics; a head fitted to features by the old ones would meet others at
    the first step.
    """
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for name in norms:
        model.get_submodule(name).train()
    try:
        yield
    finally:
        for name in norms:
            model.get_submodule(name).eval()
        for buffer, value in kept:
            buffer.copy_(value)


def _fit(model: nn.Module, cut: FeatureCut, features: Tensor, targets: Tensor, loss: nn.Module, *, seed: int) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    draws = torch.Generator().manual_seed(torch_seed(seed, Purpose.INIT, step=1))
    for step in range(STEPS):
        rows = torch.randint(len(features), (min(SIZE, len(features)),), generator=draws).to(features.device)
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        terms = as_terms(loss(cut.head(model, features[rows]), targets[rows]), len(rows))
        optimizer.zero_grad(set_to_none=True)
        _mean(terms.values, terms.weights).backward()
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (values * weights).sum() / weights.sum().clamp_min(1e-12)


def _drawn(settings: Settings, intake: Intake, most: int) -> NDArray[np.int64]:
    """The training samples, or so many of them, in an order that no class is first in."""
    train = chosen_samples(settings, intake)
    keys = keys_of([intake.source.keys[index] for index in train])
    return train[np.argsort(keys, kind="stable")][:most]


def _is_new(created: Created, head: str | None) -> bool:
    """Whether the head did not come out of the weight file."""
    if created.report is None:
        return True
    return not created.report.anew.isdisjoint(ordered_blocks(created.model, head=head)[-1].atoms)
