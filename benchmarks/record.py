"""What every benchmark says besides its numbers: on what machine, with which versions, and whether its claims hold."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Claim:
    """One sentence that the benchmark proves or refutes."""

    name: str
    value: float
    target: str
    holds: bool


def machine() -> dict[str, Any]:
    """The hardware, and how busy it was."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "load_average": load}


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"\n{title}")
    for line in lines:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]))


def finish(
    claims: Sequence[Claim], rows: Sequence[Mapping[str, Any]], *, packages: Iterable[str], path: Path | None
) -> int:
    """Print claims, machine and versions; write everything to `path`; 1 when a claim does not hold, else 0."""
    about, using = machine(), versions(packages)
    print()
    for claim in claims:
        print(f"{'holds ' if claim.holds else 'FAILS '} {claim.name}: {claim.value:.4g}, claimed {claim.target}")
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    print(", ".join(f"{name} {number}" for name, number in using.items()))
    if path is not None:
        content = {"machine": about, "versions": using, "rows": rows, "claims": [asdict(claim) for claim in claims]}
        path.write_text(json.dumps({"command": sys.argv, **content}, indent=1) + "\n")
    return 0 if all(claim.holds for claim in claims) else 1
