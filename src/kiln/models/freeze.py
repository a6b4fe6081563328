"""Frozen means frozen: weights without gradient, running statistics that do not drift, dropout off, and a proof of it.

Works alone in any plain loop:

    frozen = freeze(model, "backbone")        # or freeze(model, but=["top(2)"]), freeze(model, "layer1", "*.bn?")
    ...                                       # train; model.train() may be called as often as you like
    frozen.verify(model)                      # raises if any frozen byte has moved

Clearing `requires_grad` alone leaves BatchNorm's statistics drifting and dropout on, and `eval()` is undone by the next
`train()`. Here a module whose every part is frozen gets a `train` of its own, which keeps it in evaluation mode. That
survives `model.train()`, `copy.deepcopy`, torch.compile and DistributedDataParallel; freeze before you wrap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn

from kiln.errors import ArtifactError, UsageError
from kiln.models.blocks import atoms_of, ordered_blocks, running_norms, select

_MARK = "_kiln_frozen"


@dataclass(frozen=True)
class Frozen:
    """What is frozen in a model, and the digests that prove it.

    Attributes:
        digests: SHA-256 of each frozen parameter and buffer as it was when frozen, by name.
        num_frozen: parameters that are not trained.
        num_trainable: parameters that are.
    """

    digests: dict[str, str]
    num_frozen: int
    num_trainable: int

    @property
    def digest(self) -> str:
        """One SHA-256 over all frozen tensors and their names."""
        return combined_digest(self.digests)

    def verify(self, model: nn.Module) -> None:
        """Hold that no frozen tensor has changed since it was frozen.

        Raises: ArtifactError (E308): with the names of those that have.
        """
        verify_digests(model, self.digests)


@dataclass(frozen=True)
class _Mark:
    """Kept on the model: names of frozen atoms, and the parameters that were trainable before."""

    atoms: frozenset[str] = frozenset()
    switched_off: frozenset[str] = frozenset()


def freeze(model: nn.Module, *what: str, but: Sequence[str] = (), head: str | None = None) -> Frozen:
    """Freeze parts of a model: no gradient, evaluation mode for good, and a digest of every tensor.

    An optimizer made before keeps its entries of frozen parameters; they have no gradient, so it does not move them.

    Args:
        model: is changed in place. What was frozen before stays so.
        what: words (`backbone`, `head`, `top(n)`, `norms`, `all`), names of modules or parameters, or patterns such as
            `layer1.*`; nothing is `all`, less `but`. See `kiln.models.blocks.select`.
        but: what stays trainable, in the same words.
        head: name of the layer that makes the output, where it is not the last one registered.
    Raises: UsageError: a name that matches nothing (E101), or nothing would be left to train without `all` (E103).
    """
    if not what and not but:
        raise UsageError("E102", "freeze(model) without saying what", expected="freeze(model, 'backbone')")
    blocks = ordered_blocks(model, head=head)
    atoms = select(model, what or ("all",), blocks) - select(model, but, blocks)
    set_frozen(model, frozen_atoms(model) | atoms)
    if "all" not in what and not any(parameter.requires_grad for parameter in model.parameters()):
        set_frozen(model, ())
        raise UsageError("E103", f"freezing {', '.join(what)} leaves nothing to train", hint="freeze(model, 'all')")
    return frozen_part(model)


def unfreeze(model: nn.Module, *what: str, head: str | None = None) -> Frozen:
    """Make parts of a model trainable again, in the words of `freeze`. Parameters that were never trainable stay so.

    An optimizer that was made while they were frozen does not know them: add them, or make it anew.

    Returns: what is still frozen.
    """
    atoms = select(model, what or ("all",), ordered_blocks(model, head=head))
    set_frozen(model, frozen_atoms(model) - atoms)
    return frozen_part(model)


def frozen_atoms(model: nn.Module) -> frozenset[str]:
    """Names of the parameters, buffers and childless modules that are frozen."""
    return getattr(model, _MARK, _Mark()).atoms


def set_frozen(model: nn.Module, atoms: Iterable[str]) -> None:
    """Freeze exactly these parameters, buffers and childless modules, and thaw all others that were frozen here."""
    before: _Mark = getattr(model, _MARK, _Mark())
    atoms, switched_off = frozenset(atoms), set(before.switched_off)
    for name, parameter in model.named_parameters():
        if name in atoms and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.grad = None
            switched_off.add(name)
        elif name not in atoms and name in switched_off:
            parameter.requires_grad_(True)
            switched_off.discard(name)
    setattr(model, _MARK, _Mark(atoms, frozenset(switched_off)))
    _hold_in_eval(model, atoms)


def frozen_part(model: nn.Module) -> Frozen:
    """What is frozen in a model now."""
    atoms = frozen_atoms(model)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    return Frozen(digests_of(model, atoms), num_frozen=total - trainable, num_trainable=trainable)


def _hold_in_eval(model: nn.Module, atoms: frozenset[str]) -> None:
    """Keep modules in evaluation mode whose every part, or whose running statistics, are frozen; let the others go."""
    statistics = {name for name in running_norms(model) if f"{name}.running_mean".lstrip(".") in atoms}
    for name, module in model.named_modules():
        inside = atoms_of(module, name)
        if name in statistics or (inside and atoms.issuperset(inside)):
            module.train = MethodType(_stay_in_eval, module)  # bound, so that a deep copy gets its own
            module.eval()
        elif module.__dict__.pop("train", None) is not None:
            module.train(model.training)


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 - the signature of `train`
    """The `train` of a frozen module."""
    return nn.Module.train(module, False)


@torch.no_grad()
def digests_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the named parameters and buffers, in any memory format. Waits for the device."""
    wanted = frozenset(names)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: _sha256(tensor) for name, tensor in sorted(tensors.items()) if name in wanted}


def _sha256(tensor: Tensor) -> str:
    """Of a tensor's bytes, one row after the other, in whatever order they lie in memory."""
    as_bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(as_bytes.numpy().data).hexdigest()


def combined_digest(digests: dict[str, str]) -> str:
    """One SHA-256 over names and digests."""
    lines = (f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify_digests(model: nn.Module, digests: dict[str, str]) -> None:
    """Hold that tensors are what they were, by name.

    Raises: ArtifactError (E308): with the names of those that are not.
    """
    now = digests_of(model, digests)
    moved = [name for name, digest in digests.items() if now.get(name) != digest]
    if moved:
        raise ArtifactError(
            "E308",
            f"{len(moved)} of {len(digests)} frozen tensors have changed",
            expected="the bytes that they had when they were frozen",
            details=moved[:20],
            hint="look for code that writes to them: an optimizer made before, a hook, or a module that updates itself",
        )
