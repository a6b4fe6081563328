"""Plain ONNX export: one file that takes the contract's uint8 images and carries classes, contract and task."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kiln import __version__
from kiln.errors import ArtifactError, MissingExtraError, UsageError
from kiln.models.modelfile import ModelFile
from kiln.models.modelheader import METADATA_KEY
from kiln.models.normalize import Normalized
from kiln.models.seal import OPEN_SEAL, seal, write_atomically
from kiln.random import Purpose, bits
from kiln.runtimes.onnx import KIND, STANDARD_DOMAINS, VERSION, OnnxRuntime
from kiln.tasks import from_dict
from kiln.tasks.decision import Decision

TOLERANCE = 1e-4  # of logits, against the largest of them or 1
PROTOBUF_LIMIT = 2**31 - 1


def export_onnx(file: ModelFile, output: Path, *, opset: int | None = None) -> float:
    """Write a model as ONNX and compare it with its parent before it counts as made.

    Args:
        file: what `read_model` gave.
        output: the path to write.
        opset: of ONNX; None is the exporter's own choice.

    Returns: the largest difference of a logit on noise images, relative to the largest logit (at least 1).
    Raises:
        MissingExtraError: the extra `deploy` is not installed.
        UsageError: the opset is not one, or the architecture cannot be exported (E102); its images are padded (E103).
        ArtifactError (E305): the export disagrees with the model; nothing is left under `output`.
    """
    if file.contract.resize == "keep":
        what = "the model takes images of different sizes with a mask, and an export takes images of one size"
        raise UsageError("E103", what, hint="kiln.load(MODEL) predicts with torch")
    spec = file.spec
    network = Normalized(file.model, spec.mean, spec.std, per_image=spec.per_image).cpu().eval()
    complete = WithProbabilities(network, file).eval()
    proto = _trace(complete, file, opset)
    description = {
        "kind": KIND,
        "version": VERSION,
        "seal": OPEN_SEAL,
        "kiln": __version__,
        "torch": torch.__version__,
        "architecture": file.spec.name,
        "parent": file.digest,
        "classes": list(file.classes),
        "contract": file.contract.to_dict(),
        "task": file.task,
        "decision": file.decision,
    }
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(description, ensure_ascii=False)
    payload, _ = seal(proto.SerializeToString())
    with tempfile.TemporaryDirectory(prefix="kiln-export-") as scratch:
        trial = Path(scratch) / "model.onnx"
        trial.write_bytes(payload)
        difference = _difference(complete, OnnxRuntime(trial, device="cpu"), file)
    if not difference <= TOLERANCE:
        what = f"the export's logits differ from the model's by {difference:.2g} of the largest, or its probabilities by that"
        raise ArtifactError("E305", what, expected=f"at most {TOLERANCE:g}", hint="try another --opset")
    write_atomically(output, payload)
    return difference


ACTIVATIONS = {"softmax": partial(torch.softmax, dim=1), "sigmoid": torch.sigmoid}


class WithProbabilities(nn.Module):
    """A network whose second output is what its logits mean: calibrated probabilities, for programs that know no Kiln."""

    scale: Tensor
    bias: Tensor

    def __init__(self, network: nn.Module, file: ModelFile) -> None:
        super().__init__()
        decision = Decision.from_dict(file.decision)
        self.network, self._activation = network, ACTIVATIONS[from_dict(file.task).activation]
        self.register_buffer("scale", torch.tensor(decision.scale or (1.0,)))
        self.register_buffer("bias", torch.tensor(decision.bias or (0.0,)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities (B, K) for images (B, C, H, W)."""
        logits = self.network(images)
        return logits, self._activation(logits * self.scale + self.bias)


def _trace(network: nn.Module, file: ModelFile, opset: int | None) -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", extra="deploy", purpose="ONNX export") from error
    images = torch.zeros(2, file.spec.channels, file.contract.height, file.contract.width, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits", "probabilities"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=1 << 16)}},
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        what = f"{file.spec.name} cannot be exported to ONNX" + (f" with opset {opset}" if opset else "")
        raise UsageError("E102", what, details=str(error).strip().splitlines()[:8]) from error
    if program is None:
        raise UsageError("E102", f"{file.spec.name}: the exporter returned nothing")
    proto = program.model_proto
    written = next(entry.version for entry in proto.opset_import if entry.domain in STANDARD_DOMAINS)
    if opset is not None and written != opset:
        raise UsageError("E102", f"opset = {opset}: the exporter wrote opset {written} instead", expected="18 or newer")
    _drop_traces(proto)
    if proto.ByteSize() > PROTOBUF_LIMIT:
        raise UsageError("E102", f"{file.spec.name} is {proto.ByteSize():,} bytes", expected="below 2 GiB: one file")
    return proto


def _drop_traces(proto: Any) -> None:
    """Remove what the exporter notes per node: stack traces with the paths of this machine."""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        for part in (*graph.node, *getattr(graph, "initializer", ()), *graph.value_info):
            del part.metadata_props[:]
            part.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its remarks about its own internals off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _difference(network: WithProbabilities, exported: OnnxRuntime, file: ModelFile) -> float:
    """The largest relative difference of logits, or difference of probabilities, on noise: batches of one and of three."""
    largest = 0.0
    shape = (file.spec.channels, file.contract.height, file.contract.width)
    for count in (1, 3):
        numbers = bits(count, Purpose.NOISE, sample=np.arange(count * shape[0] * shape[1] * shape[2]))[:, 0]
        images = (numbers >> np.uint64(56)).astype(np.uint8).reshape(count, *shape)
        with torch.inference_mode():
            logits, probabilities = (part.numpy() for part in network(torch.from_numpy(images)))
        differences = np.abs(exported.logits(images) - logits) / max(1.0, np.abs(logits).max())
        largest = max(
            largest, float(differences.max()), float(np.abs(exported.probabilities(images) - probabilities).max())
        )
    return largest
