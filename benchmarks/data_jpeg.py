"""From JPEG files to normalised 224 px batches (random resized crop and flip): Kiln in pixel form `original` and its peers.

    python benchmarks/data_jpeg.py [--json PATH] [--quick] [--rounds N] [--photos ARCHIVE.zip]

Claims: at least 1.25 times the best of torchvision (PIL and tensor paths), timm, fastai, Ultralytics and WebDataset; its
uint8 batches at least 0.85 of what two simultaneous processes reach that only decode and crop; not slower than DALI's
pipeline on the CPU.

How: two worker processes for those that have workers, two threads for Kiln and DALI; batches of 64; the same files, which
the system has in memory. The arms take turns, round after round, and each begins its turn by dropping what it had made
ahead. Claims compare the medians over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import record
import torch
from data_peers import MEAN, SCALE, STD, WORKERS, BareProcesses, peers_here
from data_work import (
    Arm,
    best_median,
    encode,
    middle,
    photos_of,
    ratios,
    raw_rows,
    synthetic,
    table,
    take_turns,
    write_folder,
)

PX, BATCH_SIZE = 224, 64
PACKAGES = (
    "torchkiln",
    "torch",
    "torchvision",
    "timm",
    "fastai",
    "ultralytics",
    "webdataset",
    "nvidia-dali-cuda120",
    "simplejpeg",
)


def kiln_loader(root: Path, source: Any = None) -> Any:
    import numpy as np

    from kiln.data.images import RandomCropImages
    from kiln.data.loader import Assembler, BadFiles, TrainLoader
    from kiln.data.sampler import Cut, Shuffle
    from kiln.data.source import open_source
    from kiln.pixels import PixelContract
    from kiln.random import keys_of

    opened = open_source(root)
    keys, indices = keys_of(opened.keys), np.arange(len(opened))
    contract = PixelContract(PX, PX, interpolation="bilinear")
    images = RandomCropImages(opened if source is None else source, contract, scale=SCALE)
    return TrainLoader(
        Assembler(images, np.zeros(len(opened), np.int64)),
        Shuffle(indices, keys, seed=0),
        Cut(len(opened), BATCH_SIZE, drop_last=True),
        keys=keys,
        bad_files=BadFiles(opened.keys),
        draw_params=None,
        workers=WORKERS,
    )


def kiln_bytes(root: Path, source: Any = None) -> Iterator[Any]:
    return kiln_loader(root, source).from_step(0)


def kiln_normalized(root: Path, source: Any = None) -> Iterator[Any]:
    from kiln.augment import OnDevice, policy

    light, loader = policy("light"), kiln_loader(root, source)
    loader.draw_params = lambda epoch, keys: light.draw(0, epoch, keys)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return OnDevice(loader, light, device=torch.device("cpu"), mean=mean, std=std).from_step(0)


def files_of(kind: str, count: int, photos: Path | None) -> list[bytes]:
    if kind == "photos":
        return photos_of(photos, count) if photos else []
    return [encode(synthetic(number, 375, 500), 92) for number in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--photos", type=Path, help="a zip of real photos, measured beside the made ones")
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.3) if arguments.quick else (arguments.rounds, arguments.seconds)
    rows, claims = [], []
    for kind in ("files of 500 x 375", "photos"):
        files = files_of(kind, 128 if arguments.quick else 1024, arguments.photos)
        if not files:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "images"
            paths = write_folder(root, files)
            ours, bytes_only = (
                Arm("Kiln", partial(kiln_normalized, root)),
                Arm("Kiln, uint8", partial(kiln_bytes, root)),
            )
            bare = [BareProcesses(paths, PX, library) for library in ("simplejpeg", "opencv")]
            peers, missing = peers_here(root, PX, BATCH_SIZE)
            arms = [ours, bytes_only, *peers, *bare]
            take_turns(arms, rounds=rounds, seconds=seconds)
        size = sum(map(len, files)) / len(files) / 1000
        record.show(
            f"{kind}, {size:.0f} kB each, images/s", ("", "median", "middle half", "Kiln / it", "n"), table(arms, ours)
        )
        for line in missing:
            print(f"left out: {line}")
        rows += raw_rows(arms, kind)
        claims += claims_of(kind, ours, bytes_only, peers, bare)
    return record.finish(claims, rows, packages=PACKAGES, path=arguments.json)


def claims_of(kind: str, ours: Arm, bytes_only: Arm, peers: list[Arm], bare: list[Arm]) -> list[record.Claim]:
    found = []
    with_workers = [arm for arm in peers if not arm.name.startswith("DALI")]
    if with_workers:
        best = best_median(with_workers)
        value = middle(ratios(ours, best))[0]
        found.append(record.Claim(f"{kind}: Kiln over the best peer ({best.name})", value, ">= 1.25", value >= 1.25))
    for arm in peers:
        if arm.name.startswith("DALI"):
            value = middle(ratios(ours, arm))[0]
            found.append(record.Claim(f"{kind}: Kiln over DALI", value, ">= 1", value >= 1))
    for arm in bare:
        value = middle(ratios(bytes_only, arm))[0]
        found.append(record.Claim(f"{kind}: Kiln's uint8 batches over {arm.name}", value, ">= 0.85", value >= 0.85))
    return found


if __name__ == "__main__":
    sys.exit(main())
