"""A network cut into an ordered row of blocks: stem first, head last. One rule for every family and for user's modules.

Freezing from below, training the last n blocks, and rates that shrink with depth all count in these blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from kiln.errors import UsageError
from kiln.models.surgery import head_names

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_TOP = re.compile(r"top\((\d+)\)")


@dataclass(frozen=True)
class Block:
    """A part of a network that is frozen, trained and rated as one.

    Attributes:
        name: of its first module, such as `layer4.1`; `head` for the last block of a model.
        atoms: names of the parameters, buffers and childless modules in it.
    """

    name: str
    atoms: tuple[str, ...]


def ordered_blocks(model: nn.Module, *, head: str | None = None) -> tuple[Block, ...]:
    """Cut a model into blocks, in the order in which its modules were registered; the head is the last.

    Plain containers are opened, and so is a module with more than half of all weights that is the only one of its kind
    (a backbone, an encoder). What was not opened is a block; norms, activations, pooling and dropout join what comes
    before them. Parameters of an opened module itself (position embeddings, class tokens) belong to the first block
    inside it. The head is every block that holds a classifier, auxiliary ones too, and the dropout before it.

    Args:
        model: any module. Every parameter, buffer and childless module is in exactly one block.
        head: name of the layer that makes the output, where it is not the last one registered.
    Raises: UsageError (E107): there is no head, or nothing but a head.
    """
    heads = (head,) if head is not None else head_names(model)
    modules = dict(model.named_modules())
    unknown = [name for name in heads if name not in modules]
    if unknown or not heads:
        what = f"the model has no layer {unknown[0]!r}" if unknown else "the model has no linear layer or convolution"
        raise UsageError("E107", what, expected="the layer that makes the output", choices=list(modules)[-20:])
    body: list[tuple[str, list[str]]] = []
    head_atoms: list[str] = []
    latest = head_atoms  # what a norm, an activation or a pooling that comes next belongs to
    for name, atoms in _pieces(model):
        if any(_is_within(entry, name) or _is_within(name, entry) for entry in heads):
            head_atoms += [*_taken_dropouts(body, model), *atoms]
            latest = head_atoms
        elif _joins(modules[name]) and (body or latest):
            latest += atoms
        else:
            body.append((name, atoms))
            latest = atoms
    parameters = {name for name, _ in model.named_parameters()}
    if not any(parameters.intersection(atoms) for _, atoms in body):
        raise UsageError("E107", f"nothing comes before the head {heads[0]!r}, so there is no backbone to cut")
    return (*(Block(name, tuple(atoms)) for name, atoms in body), Block("head", tuple(head_atoms)))


def _pieces(model: nn.Module) -> list[tuple[str, list[str]]]:
    """Modules that are not opened, with all their atoms, in order of registration."""
    half = sum(parameter.numel() for parameter in model.parameters()) / 2
    kinds = Counter(type(module) for module in model.modules())
    pieces: list[tuple[str, list[str]]] = []

    def walk(prefix: str, module: nn.Module) -> None:
        own = [_join(prefix, name) for name in _own_tensors(module)]
        begins = len(pieces)
        for name, child in module.named_children():
            place = _join(prefix, name)
            weights = sum(parameter.numel() for parameter in child.parameters())
            wraps = weights > half and kinds[type(child)] == 1
            if any(True for _ in child.children()) and (type(child) in CONTAINERS or wraps):
                walk(place, child)
            else:
                pieces.append((place, atoms_of(child, place)))
        if own:
            if len(pieces) == begins:
                pieces.append((prefix, []))
            pieces[begins][1][:0] = own

    walk("", model)
    return pieces


def atoms_of(module: nn.Module, prefix: str = "") -> list[str]:
    """Names of all parameters, buffers and childless modules under a module."""
    names = [_join(prefix, name) for name, child in module.named_modules() if not any(True for _ in child.children())]
    tensors = [name for name, _ in (*module.named_parameters(prefix), *module.named_buffers(prefix))]
    return [name for name in names if name] + tensors


def select(model: nn.Module, what: Sequence[str], blocks: Sequence[Block]) -> set[str]:
    """The atoms that words and patterns stand for.

    Args:
        model: that the blocks were cut from.
        what: `all`, `head`, `backbone`, `top(n)` (the head and the n blocks before it), `norms` (layers with running
            statistics), `statistics` (those alone), the name of a module or parameter, or a pattern such as `*.bn?`.
        blocks: of `ordered_blocks`.
    Raises: UsageError (E101): a name or pattern that matches nothing, or more blocks than there are (E102).
    """
    found: set[str] = set()
    for word in what:
        found |= _selected(model, word, blocks)
    return found


def _selected(model: nn.Module, word: str, blocks: Sequence[Block]) -> set[str]:
    *body, head = blocks
    if top := _TOP.fullmatch(word):
        count = int(top[1])
        if not 1 <= count <= len(body):
            expected = f"top(1) to top({len(body)}), which is all"
            raise UsageError("E102", f"{word}: the model has {len(body)} blocks before its head", expected=expected)
        return {atom for block in (*body[-count:], head) for atom in block.atoms}
    if word in ("all", "head", "backbone"):
        chosen = {"all": blocks, "head": (head,), "backbone": body}[word]
        return {atom for block in chosen for atom in block.atoms}
    every = [atom for block in blocks for atom in block.atoms]
    if word == "norms":
        return {atom for name in running_norms(model) for atom in every if _is_within(atom, name)}
    if word == "statistics":
        norms = set(running_norms(model))
        return {name for name, _ in model.named_buffers() if name in every and name.rpartition(".")[0] in norms}
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())]
    matched = [name for name in names if name and (name == word or fnmatchcase(name, word))]
    if not matched:
        choices = ["all", "head", "backbone", "top(n)", "norms", "statistics", *(block.name for block in body)]
        raise UsageError("E101", f"{word!r} names nothing in the model", got=word, choices=choices)
    return {atom for atom in every if any(_is_within(atom, name) for name in matched)}


def running_norms(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that keep running statistics: BatchNorm, SyncBatchNorm, timm's, InstanceNorm that tracks."""
    return tuple(
        name for name, module in model.named_modules() if isinstance(getattr(module, "running_mean", None), Tensor)
    )


def _own_tensors(module: nn.Module) -> Iterator[str]:
    yield from (name for name, _ in module.named_parameters(recurse=False))
    yield from (name for name, _ in module.named_buffers(recurse=False))


def _taken_dropouts(body: list[tuple[str, list[str]]], model: nn.Module) -> list[str]:
    """Take the dropout just before the head out of the block that it joined: it works when the head is trained."""
    taken: list[str] = []
    while body and body[-1][1] and isinstance(_at(model, body[-1][1][-1]), DROPOUTS):
        taken.insert(0, body[-1][1].pop())
    return taken


def _at(model: nn.Module, name: str) -> object:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def _joins(module: nn.Module) -> bool:
    """Whether a piece belongs to what comes before it, having no matrix or kernel: norms, activations, pooling, dropout."""
    return all(parameter.ndim < 2 for parameter in module.parameters())


def _is_within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name
