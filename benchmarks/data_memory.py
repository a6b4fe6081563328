"""Does the loader's memory stay flat? 20 epochs of 50,000 small images with 4 workers, out of a cache on disk.

    python benchmarks/data_memory.py [--json PATH] [--quick]

Claims: the private memory of the process (workers are threads in it) grows by less than 1 % between the end of the second
epoch and that of the last; all files of the cache together stay within its budget, also where it is too small for the data.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import psutil
import record
from data_cache import CIFAR_BATCH, kiln_small, small_folder

PACKAGES = ("torchkiln", "torch", "numpy", "psutil")


def private_mib() -> float:
    gc.collect()
    return psutil.Process().memory_full_info().uss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    count, epochs = (2000, 4) if arguments.quick else (50_000, 20)
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KILN_CACHE"] = f"{folder}/cache"
        root = Path(folder) / "small"
        small_folder(root, None, count)
        stream = kiln_small(root, workers=4)
        for epoch in range(epochs):
            for _ in range(count // CIFAR_BATCH):
                next(stream)
            rows.append({"epoch": epoch + 1, "private_mib": private_mib()})
        stream.close()
        record.show("after epoch", ("", "private MiB"), [(str(r["epoch"]), f"{r['private_mib']:.1f}") for r in rows])
        growth = rows[-1]["private_mib"] / rows[1]["private_mib"] - 1
        budget = 3_000_000
        from kiln.data.cache import ContractForm, StoredSource, open_store
        from kiln.data.source import open_source
        from kiln.pixels import PixelContract

        source, form = open_source(root), ContractForm(PixelContract(32, 32))
        os.environ["KILN_CACHE"] = f"{folder}/tighter"
        store = open_store(source, form, tier="disk", needed=len(source) * 3072, limit_bytes=budget)
        if store is not None:
            kept = StoredSource(source, form, store)
            for index in range(min(len(source), 2000)):
                kept.read(index)
            store.flush()
        size = sum(path.stat().st_size for path in Path(f"{folder}/tighter").rglob("*") if path.is_file())
        share = store.filled() if store is not None else 0.0
        print(f"\nbudget {budget:,} bytes: {size:,} taken, {share:.1%} of the images kept")
    claims = [
        record.Claim("growth of private memory", growth, "< 0.01", growth < 0.01),
        record.Claim("bytes of a cache with a budget of 3 MB", size, "<= 3000000", size <= budget),
    ]
    return record.finish(claims, rows, packages=PACKAGES, path=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
