"""An exported model on ONNX Runtime. Needs neither torch nor the code of the architecture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.errors import ArtifactError, MissingExtraError, SecurityError, UsageError
from kiln.models.modelheader import METADATA_KEY
from kiln.models.seal import ANOTHER_COPY, verify_seal
from kiln.pixels import PixelContract, PixelError

KIND, VERSION = "kiln-onnx", 1
STANDARD_DOMAINS = ("", "ai.onnx")


class OnnxRuntime:
    """Runs an `.onnx` that Kiln exported, after checking that it is whole and stays within itself.

    Args:
        path: of the file.
        device: `auto`, `cpu` or `cuda`; `auto` takes CUDA where this ONNX Runtime has it.
        trusted: unused: nothing in such a file can name code.
    """

    name = "onnx"

    def __init__(self, path: Path, *, device: str = "auto", trusted: tuple[str, ...] = ()) -> None:  # noqa: ARG002
        ort = _onnxruntime()
        description = read_onnx_header(path)
        verify_seal(path)
        providers = _providers(ort, device)
        options = ort.SessionOptions()
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(path.read_bytes(), options, providers=providers)
        except Exception as error:  # its exceptions share no base class
            raise ArtifactError("E303", f"{path}: ONNX Runtime cannot run it: {str(error).splitlines()[0]}") from error
        self.device = "cuda" if self._session.get_providers()[0].startswith("CUDA") else "cpu"
        self.classes = tuple(description["classes"])
        self.task: dict[str, Any] = description["task"]
        self.decision: dict[str, Any] = description.get("decision", {})
        self.digest = str(description.get("parent", ""))
        try:
            self.contract = PixelContract.from_dict(description["contract"])
        except PixelError as error:
            raise ArtifactError("E303", f"{path}: {error}", hint="pip install -U torchkiln") from error

    def logits(self, images: NDArray[np.uint8], sizes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:  # noqa: ARG002
        """Logits (B, K) for images (B, C, H, W). `sizes` is None: models of padded images are not exported."""
        return self._session.run(["logits"], {"images": images})[0]

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The graph's own calibrated probabilities (B, K), which programs that know no Kiln read."""
        return self._session.run(["probabilities"], {"images": images})[0]


def read_onnx_header(path: Path) -> dict[str, Any]:
    """What an export says about itself, after a look at every tensor and operator of it.

    Raises:
        ArtifactError: not ONNX or damaged (E307), not from Kiln or newer (E303).
        SecurityError: it keeps tensors in other files (E703), or uses operators outside the standard (E701).
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", extra="deploy", purpose="reading an ONNX model") from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ArtifactError("E307", f"{path} is not ONNX, or damaged", hint=ANOTHER_COPY) from error
    refuse_foreign_parts(model, path)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    try:
        found = json.loads(texts.get(METADATA_KEY, "null"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError("E307", f"{path} is damaged: its description is not JSON", hint=ANOTHER_COPY) from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        hint = "export it with `kiln export`, or run it with onnxruntime itself"
        raise ArtifactError(
            "E303", f"{path} carries no description by Kiln: classes and preprocessing are unknown", hint=hint
        )
    if found.get("version") != VERSION:
        what = f"{path} is an export of version {found.get('version')!r}; this Kiln reads {VERSION}"
        raise ArtifactError("E303", what, hint="pip install -U torchkiln")
    types = {"classes": list, "contract": dict, "task": dict}
    if wrong := [name for name, kind in types.items() if not isinstance(found.get(name), kind)]:
        raise ArtifactError("E303", f"{path}: its description lacks {', '.join(wrong)}")
    return found


def refuse_foreign_parts(model: Any, path: Path) -> None:
    """Raise SecurityError if an ONNX model reaches outside itself: external data (E703), custom operators (E701)."""
    own = {(function.domain, function.name) for function in model.functions}
    graphs = [model.graph, *model.functions]
    for node in (node for graph in graphs for node in _nodes(graph)):
        if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in own:
            what = f"{path} uses the operator {node.domain}:{node.op_type}, which is code from elsewhere"
            raise SecurityError("E701", what, expected="standard ONNX operators only")
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == tensor.EXTERNAL:
            named = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
            what = f"{path} keeps the tensor {tensor.name!r} in another file: {named!r}"
            raise SecurityError("E703", what, expected="one file that holds everything")


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _tensors(model: Any) -> Iterator[Any]:
    graphs = [model.graph]
    nodes = [node for graph in (model.graph, *model.functions) for node in _nodes(graph)]
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [attribute.g, *attribute.graphs]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra="deploy", purpose="running an ONNX model") from error
    return onnxruntime


def _providers(ort: Any, device: str) -> list[str]:
    here = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    available = [name for name, provider in here.items() if provider in ort.get_available_providers()]
    if device == "auto":
        device = "cuda" if "cuda" in available else "cpu"
    if device not in available:
        raise UsageError("E109", f"device = {device!r}: this ONNX Runtime has it not", got=device, choices=available)
    return [here[device]] if device == "cpu" else [here[device], here["cpu"]]
