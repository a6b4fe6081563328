"""Put a file's tensors into a model, and say exactly what fitted and what did not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from kiln.errors import ArtifactError
from kiln.models.surgery import adapt_stem_weight, first_conv

WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


@dataclass(frozen=True)
class Origin:
    """Where weights came from, as a run records it.

    Attributes:
        url: the publisher's address; empty for a file of the user's own.
        path: the file that was read.
        sha256: of that file.
    """

    url: str
    path: str
    sha256: str


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a weight file.

    Attributes:
        source: the file or repository.
        loaded: how many tensors of the model came from it.
        missing: tensors of the model that it does not have; they keep their initial values.
        unexpected: tensors of it that the model has no place for.
        reshaped: tensors of both, with different shapes: adapted, or left at their initial values; each says which.
        origin: where the tensors came from, where that is known.
    """

    source: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    origin: Origin | None = None

    @property
    def anew(self) -> frozenset[str]:
        """The tensors of the model that did not come out of the file."""
        left = (text.partition(" ")[0] for text in self.reshaped if text.endswith("initialised anew)"))
        return frozenset((*self.missing, *left))

    def notes(self) -> tuple[str, ...]:
        """Sentences to print."""
        lines = [f"{self.loaded} tensors loaded from {self.source}"]
        for names, what in (
            (self.missing, "not in the file, initialised anew"),
            (self.unexpected, "in the file, without a place in the model"),
            (self.reshaped, "of another shape"),
        ):
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                lines.append(f"{len(names)} {what}: {', '.join(names[:8])}{more}")
        if self.origin is not None:
            lines.append(f"weights of {self.origin.url or self.origin.path}, SHA-256 {self.origin.sha256}")
        return tuple(lines)


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, drop: tuple[str, ...] = ()
) -> LoadReport:
    """Load what fits by name and shape; adapt the first convolution; leave the rest as initialised, and report it.

    Wrapper prefixes are stripped, timm's own renaming of old checkpoints is applied, and a prefix that all names share
    (Lightning's `model.`) is stripped when that is what makes them fit.

    Args:
        model: changed in place.
        state: names to tensors, from a file.
        source: for the report and for errors.
        drop: layers, such as the head, whose tensors in the file are not wanted.

    Raises: ArtifactError (E304): nothing fits, or a tensor holds NaN.
    """
    own = model.state_dict()
    state = _matching_names(model, {strip_wrappers(key): value for key, value in state.items()}, own)
    stem = f"{first_conv(model)}.weight"
    chosen: dict[str, Tensor] = {}
    reshaped: list[str] = []
    for key, target in own.items():
        found = state.get(key)
        if found is None:
            continue
        if key.rpartition(".")[0] in drop:
            reshaped.append(f"{key} (the head of other classes: initialised anew)")
        elif found.shape == target.shape:
            chosen[key] = found
        elif key == stem and (adapted := _adapt(found, target)) is not None:
            chosen[key] = adapted
            reshaped.append(f"{key} (adapted from {found.shape[1]} to {target.shape[1]} channels)")
        else:
            reshaped.append(f"{key} (file {_shape(found)}, model {_shape(target)}: initialised anew)")
    missing = tuple(key for key in own if key not in state and not key.endswith("num_batches_tracked"))
    unexpected = tuple(key for key in state if key not in own)
    report = LoadReport(source, len(chosen), missing, unexpected, tuple(reshaped))
    if not any(key in dict(model.named_parameters()) for key in chosen):
        raise ArtifactError(
            "E304", f"{source}: none of its {len(state)} tensors fits the model", details=_first_names(state, own)
        )
    refuse_nan(chosen, source)
    model.load_state_dict(chosen, strict=False)
    return report


def strip_wrappers(key: str) -> str:
    """The name of a tensor without what DistributedDataParallel and torch.compile put before it."""
    while key.startswith(WRAPPERS):
        key = key.removeprefix(next(prefix for prefix in WRAPPERS if key.startswith(prefix)))
    return key


def refuse_nan(state: Mapping[str, Tensor], source: str) -> None:
    """Raise ArtifactError (E304) if a tensor holds NaN. Infinity is allowed: attention masks are made of it."""
    bad = [key for key, value in state.items() if value.is_floating_point() and bool(value.isnan().any())]
    if bad:
        hint = "the training that made it diverged; use an earlier checkpoint"
        raise ArtifactError("E304", f"{source}: {len(bad)} tensors hold NaN", details=bad[:20], hint=hint)


def _matching_names(model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shared = {key.split(".", 1)[0] for key in state}
    if len(shared) == 1 and not own.keys() & state.keys() and all("." in key for key in state):
        state = {strip_wrappers(key.split(".", 1)[1]): value for key, value in state.items()}
    fits = all(key in own and own[key].shape == value.shape for key, value in state.items())
    rename = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if fits or rename is None or not hasattr(model, "pretrained_cfg"):
        return state
    try:
        return dict(rename(dict(state), model))
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError):
        return state  # written for this architecture's published files; another file may not suit it


def _adapt(found: Tensor, target: Tensor) -> Tensor | None:
    same = found.ndim == target.ndim == 4 and found.shape[0] == target.shape[0] and found.shape[2:] == target.shape[2:]
    return adapt_stem_weight(found, target.shape[1]) if same else None


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [f"file: {', '.join(list(state)[:5])} ...", f"model: {', '.join(list(own)[:5])} ..."]
