"""The one place that opens a pickle: foreign `.pt` / `.pth` / `.bin` weights become safetensors, in a child process.

The child (`python -I -m kiln.models.convert SOURCE TARGET`) has limits on memory, time, file size and processes, reads
with `weights_only=True` and nothing else, and writes tensors only. Kiln itself then reads the safetensors, from a
cache keyed by the content of the source. A file that needs more than tensors is refused; there is no fallback.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiln.errors import ArtifactError, KilnError, ResourceError, SecurityError
from kiln.models.seal import ANOTHER_COPY, OPEN_SEAL, seal, verify_seal, write_atomically

VERSION = 1  # part of the cache key: raise it when the conversion changes
OLDEST_TORCH = (2, 10)  # weights_only=True was bypassed before (CVE-2025-32434, CVE-2026-24747)
CHILD_SECONDS = 600
# Where trainers put the weights; averages first, because they are what those trainers evaluate.
NESTS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "module")
CODE, DAMAGED, NO_WEIGHTS, TOO_BIG = 3, 4, 5, 6  # exit statuses of the child


def cache_folder(name: str) -> Path:
    """A private folder under `KILN_CACHE`, or under the platform's cache folder."""
    import platformdirs

    root = Path(os.environ.get("KILN_CACHE") or platformdirs.user_cache_dir("kiln"))
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def convert(source: Path) -> Path:
    """The safetensors form of a foreign weight file, from the cache if this content was converted before.

    Raises:
        SecurityError (E702): the file holds code, or objects other than tensors.
        ArtifactError: the file is damaged (E307), or holds no weights (E304).
        ResourceError: it does not fit the limits (E402).
    """
    target = converted_form(source)
    if target.exists():
        try:
            verify_seal(target)
        except ArtifactError:
            target.unlink()
        else:
            return target
    _run_child(source, target)
    return target


def converted_form(source: Path) -> Path:
    """Where the converted form of a file's content lies, once there is one."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache_folder("weights") / f"{digest}-v{VERSION}.safetensors"


def _run_child(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kiln-convert-") as scratch:
        command = [sys.executable, "-I", "-m", "kiln.models.convert", str(source.resolve()), str(target.resolve())]
        environment = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if key in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "HOME": scratch, "TMPDIR": scratch}
        try:
            child = subprocess.run(
                command,
                cwd=scratch,
                env=environment,
                capture_output=True,
                text=True,
                timeout=CHILD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ResourceError("E402", f"{source}: not converted within {CHILD_SECONDS} s") from error
    if child.returncode == 0 and target.exists():
        return
    raise _explain(source, child.returncode, child.stdout.strip() or child.stderr.strip()[-400:])


def _explain(source: Path, status: int, said: str) -> KilnError:
    again = "torch.save(model.state_dict(), ...) or safetensors.torch.save_file(...) where the file was made"
    if status == CODE:
        return SecurityError("E702", f"{source} holds code or objects instead of weights: {said}", hint=again)
    if status == DAMAGED:
        return ArtifactError("E307", f"{source} cannot be read as weights: {said}", hint=ANOTHER_COPY)
    if status == NO_WEIGHTS:
        return ArtifactError("E304", f"{source} holds no weights: {said}", hint=again)
    if status == TOO_BIG:
        return ResourceError("E402", f"{source} needs more memory or disk than its size explains: {said}")
    return ArtifactError("E307", f"{source}: reading it ended with status {status}: {said}", hint=again)


# --- the child --------------------------------------------------------------------------------------------------------


class _Refused(Exception):  # noqa: N818  # carries an exit status to _main, and never leaves it
    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


def _limit(size: int) -> None:
    """Bound this process from here on: memory and disk by the size of the file, CPU time, no new processes."""
    if os.name != "posix":
        return
    import resource

    used = 0
    if Path("/proc/self/statm").exists():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    memory = used + 4 * size + (1 << 30)
    limits = [("RLIMIT_CORE", 0), ("RLIMIT_CPU", CHILD_SECONDS), ("RLIMIT_FSIZE", 2 * size + (1 << 20))]
    if used:
        limits += [("RLIMIT_AS", memory), ("RLIMIT_NPROC", 0)]
    for name, value in limits:
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _read(source: Path) -> Any:
    import argparse

    import torch

    torch.set_num_threads(1)
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        raise _Refused(CODE, f"torch {torch.__version__} has known holes in weights_only; 2.10 or newer is needed")
    # Trainers store their flags beside the weights; a Namespace is a plain bag of attributes and runs nothing.
    torch.serialization.add_safe_globals([argparse.Namespace])
    _limit(source.stat().st_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of the pickle; what matters follows as an error
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = _first_sentence(error)
        if "Unsupported operand" in text and _first_byte(source) == b"\x80":  # a pickle, but not by torch.save
            raise _Refused(CODE, f"a pickle that torch did not write ({text})") from error
        asks_for_code = any(word in text for word in ("GLOBAL", "class", "function", "instantiate", "REDUCE", "BUILD"))
        raise _Refused(CODE if asks_for_code else DAMAGED, text) from error
    except MemoryError as error:
        raise _Refused(TOO_BIG, "out of memory") from error
    except Exception as error:  # a hostile or broken file may raise anything
        text = _first_sentence(error)
        if "TorchScript" in text or "torch.jit" in text:
            raise _Refused(CODE, "a TorchScript program") from error
        if "can't allocate" in text or "not enough memory" in text:
            raise _Refused(TOO_BIG, text) from error
        raise _Refused(DAMAGED, f"{type(error).__name__}: {text}") from error


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0][:300]


def find_state_dict(loaded: Any) -> tuple[Mapping[str, Any], str]:
    """The mapping of names to tensors in what a weight file held, and the key it was nested under.

    Raises: LookupError: no tensors under any known key.
    """
    if isinstance(loaded, Mapping):
        tensors = {key: value for key, value in loaded.items() if _is_tensor(value)}
        if tensors:
            return tensors, ""
        for key in NESTS:
            try:
                found, below = find_state_dict(loaded.get(key))
            except LookupError:
                continue
            return found, f"{key}.{below}".rstrip(".")
        raise LookupError(f"no tensors under any of its keys {sorted(map(str, loaded))[:10]}")
    raise LookupError(f"a {type(loaded).__name__} where a dictionary of tensors was expected")


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _write(target: Path, state: Mapping[str, Any], nest: str) -> None:
    import safetensors.torch

    tensors = {str(key): value.detach().to_dense().cpu().contiguous().clone() for key, value in state.items()}
    about = {"kind": "kiln-converted-weights", "version": VERSION, "seal": OPEN_SEAL, "nest": nest}
    payload, _ = seal(safetensors.torch.save(tensors, metadata={"kiln-converted": json.dumps(about)}))
    write_atomically(target, payload)


def _main(source: Path, target: Path) -> int:
    try:
        loaded = _read(source)
        state, nest = find_state_dict(loaded)
        _write(target, state, nest)
    except _Refused as refused:
        sys.stdout.write(str(refused))
        return refused.status
    except LookupError as error:
        sys.stdout.write(str(error))
        return NO_WEIGHTS
    except (ResourceError, MemoryError, RuntimeError) as error:  # torch reports a failed allocation as RuntimeError
        sys.stdout.write(_first_sentence(error))
        return TOO_BIG
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2])))
