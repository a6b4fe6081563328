"""Fine-tuning in stages: what is trained from which step on, what is kept at the change, and the proof for the rest.

Which stage a step belongs to follows from the step alone. At a change of stage the frozen part is first proved unchanged;
then parameters are thawed, a new optimizer is made with the stage's rates, and whatever already trained keeps its
optimizer state to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kiln.engine.state import load_optimizer_state, optimizer_state
from kiln.errors import UsageError
from kiln.events import StageBegan
from kiln.models.blocks import ordered_blocks, select
from kiln.models.freeze import combined_digest, digests_of, frozen_atoms, set_frozen, verify_digests

if TYPE_CHECKING:
    from kiln.engine.state import State


@dataclass(frozen=True)
class Stage:
    """From a step on, some parts of a model are trained and all others are frozen.

    Attributes:
        trains: words as `kiln.models.blocks.select` takes them, such as `("head",)` or `("all",)`.
        first_step: 0-based optimizer step that it begins with.
        rate: factor of the learning rate in this stage.
        layer_decay: factor of the rate from each layer to the one below it.
    """

    trains: tuple[str, ...]
    first_step: int = 0
    rate: float = 1.0
    layer_decay: float = 1.0

    @property
    def name(self) -> str:
        """What is trained, as it was asked for."""
        return ", ".join(self.trains)


MakeOptimizer = Callable[[nn.Module, Stage], torch.optim.Optimizer]


class Stages:
    """The stages of a training. Freezes the model for the first one when it is made; `fit` enters the others.

    `frozen` holds, by stage, the names of the parameters, buffers and childless modules that are frozen in it.

    Args:
        model: is changed in place.
        stages: in order, the first from step 0 on.
        make_optimizer: over the trainable parameters, with the stage's rates.
        also_frozen: words for what stays frozen in every stage, such as the statistics of norms.
        head: name of the layer that makes the output, where it is not the last one registered.
    Raises: UsageError: stages out of order (E102), words that match nothing (E101), a stage that trains nothing (E103).
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[Stage],
        make_optimizer: MakeOptimizer,
        *,
        also_frozen: Sequence[str] = (),
        head: str | None = None,
    ) -> None:
        _check_order(stages)
        self.stages, self.current = tuple(stages), 0
        self.rewrap: Callable[[], None] = _nothing
        """Puts a strategy's wrapper around the model again: a wrapper knows only what was trainable when it was made."""
        self._model, self._make_optimizer = model, make_optimizer
        blocks = ordered_blocks(model, head=head)
        every = select(model, ("all",), blocks)
        always = select(model, also_frozen, blocks)
        self.frozen = [(every - select(model, stage.trains, blocks)) | always for stage in stages]
        for stage, atoms in zip(self.stages, self.frozen, strict=True):
            if not any(name not in atoms for name, parameter in model.named_parameters() if parameter.requires_grad):
                raise UsageError("E103", f"a stage that trains {stage.name} leaves nothing to train")
        set_frozen(model, self.frozen[0])
        self._digests: dict[str, str] | None = None

    @property
    def stage(self) -> Stage:
        """The present one."""
        return self.stages[self.current]

    @property
    def num_frozen(self) -> int:
        """How many parameters and buffers are frozen now."""
        tensors = (*self._model.named_parameters(), *self._model.named_buffers())
        return sum(name in frozen_atoms(self._model) for name, _ in tensors)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """An optimizer for the present stage, without a past."""
        return self._make_optimizer(self._model, self.stage)

    def enter(self, state: State) -> StageBegan | None:
        """Begin the stage that the next step belongs to, if it is another one. Called by `fit` before each step.

        Raises: ArtifactError (E308): something that was frozen until now has changed.
        """
        if self._digests is None:
            self._digests = digests_of(self._model, frozen_atoms(self._model))
        index = sum(stage.first_step <= state.step for stage in self.stages) - 1
        if index == self.current:
            return None
        self.prove(state)
        self._begin(index, state)
        self._digests = digests_of(self._model, frozen_atoms(self._model))
        parameters = list(self._model.parameters())
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        state.decide("stage", trains=self.stage.name, rate=self.stage.rate, trainable=trainable)
        return StageBegan(state.step, self.stage.name, trainable, sum(parameter.numel() for parameter in parameters))

    def prove(self, state: State) -> str | None:
        """Hold that what this stage froze is as it was when the stage began, and write that into the decision log.

        Returns: the SHA-256 over all frozen tensors; None when nothing was frozen.
        Raises: ArtifactError (E308): with the names of what has changed.
        """
        if not self._digests:
            return None
        verify_digests(self._model, self._digests)
        digest = combined_digest(self._digests)
        state.decide("frozen_unchanged", stage=self.stage.name, tensors=len(self._digests), sha256=digest)
        return digest

    def _begin(self, index: int, state: State) -> None:
        self.current = index
        set_frozen(self._model, self.frozen[index])
        before = optimizer_state(self._model, state.optimizer)
        if isinstance(state.optimizer, torch.optim.LBFGS):  # its history is of all that it trained, as one vector
            before = {part: {} for part in before}
        state.optimizer = self.make_optimizer()
        trained = {name for name, parameter in self._model.named_parameters() if parameter.requires_grad}
        kept = {part: {name: held[name] for name in held.keys() & trained} for part, held in before.items()}
        load_optimizer_state(self._model, state.optimizer, kept)
        self.rewrap()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the stage, and the digests that its end is held against."""
        return {"stage": self.current, "digests": self._digests}

    def load_state(self, tree: dict[str, Any], state: State) -> None:
        """Continue from `state()`: freeze as then, and put an optimizer of that stage into `state`."""
        self._digests = tree["digests"]
        if tree["stage"] != self.current:
            self._begin(tree["stage"], state)


def _nothing() -> None:
    """For a model without a wrapper."""


def _check_order(stages: Sequence[Stage]) -> None:
    firsts = [stage.first_step for stage in stages]
    if not firsts or firsts[0] != 0:
        what = f"the first stage begins at step {firsts[0]}" if firsts else "no stages"
        raise UsageError("E102", what, expected="a first stage from step 0 on")
    for before, after in pairwise(stages):
        if after.first_step <= before.first_step:
            raise UsageError(
                "E102",
                f"stages out of order: {after.name} from step {after.first_step}"
                f" after {before.name} from step {before.first_step}",
                expected="each stage later than the one before",
            )
