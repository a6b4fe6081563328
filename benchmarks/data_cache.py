"""From kept copies to 224 px batches, and small images at 32 px: what decoding once gains.

    python benchmarks/data_cache.py [--json PATH] [--quick] [--rounds N] [--photos ARCHIVE.zip] [--cifar ARCHIVE.zip]

Claims, copies of 256 px, random resized crop: uint8 batches at least 15 times the best peer's path from JPEG files, and
at least 0.8 of a bare loop over a memory map that only crops and resizes; normalised batches at least 4 times; copies kept
as JPEG still above that best. CIFAR-10 at 32 px, crop with padding and flip: an epoch of 50,000 at least 20 times
faster than through torchvision's loader, 40 times than timm's; the first batch within 3 s from the archive, within
0.3 s when its images are kept already.

How: as in data_jpeg.py, whose arms these are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import record
import torch
from data_jpeg import PACKAGES, PX, kiln_bytes, kiln_normalized
from data_peers import MEAN, STD, WORKERS, endless, peers_here
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

STORED_PX = 256
EPOCH = 50_000
CIFAR_BATCH = 512


def stored_source(root: Path, quality: int | None, *, px: int = STORED_PX) -> Any:
    from kiln.data.cache import StoredForm, StoredSource, open_store
    from kiln.data.source import open_source

    source = open_source(root)
    form = StoredForm(px, 3, "bilinear", 10**8, quality)
    store = open_store(source, form, tier="disk", needed=len(source) * 4 * px * px * 3 // 2, limit_bytes=10**12)
    return StoredSource(source, form, store)


def filled(stored: Any) -> Any:
    """The same with every copy made."""
    for index in range(len(stored.source)):
        stored.read(index)
    stored.store.flush()
    return stored


def bare_map(stored: Any) -> Iterator[int]:
    """As many threads as Kiln has, each: slice the map, crop, resize, over and over. No batch, no order, no checks."""
    from kiln.data.decode import crop_resize

    images = [stored.read(index) for index in range(len(stored.source))]
    counts, running = [0] * WORKERS, True

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        out = np.empty((PX, PX, 3), np.uint8)
        while running:
            boxes = []
            chosen = rng.integers(0, len(images), 256)
            for index in chosen.tolist():
                height, width = images[index].shape[:2]
                area, ratio = rng.uniform(0.08, 1) * height * width, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
                wide, tall = min(width, int((area * ratio) ** 0.5) or 1), min(height, int((area / ratio) ** 0.5) or 1)
                left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - tall + 1))
                boxes.append((left, top, left + wide, top + tall))
            for index, box in zip(chosen.tolist(), boxes, strict=True):
                crop_resize(images[index], box, out, interpolation="bilinear")
                counts[number] += 1
                if not running:
                    return

    def turn() -> Iterator[int]:
        nonlocal running
        while True:
            running = True
            before = sum(counts)
            threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(WORKERS)]
            for thread in threads:
                thread.start()
            time.sleep(0.25)
            running = False
            for thread in threads:
                thread.join()
            yield sum(counts) - before

    return turn()


def copies(arguments: argparse.Namespace, rows: list[Any], claims: list[record.Claim]) -> None:
    count = 128 if arguments.quick else 1024
    rounds, seconds = (1, 0.3) if arguments.quick else (arguments.rounds, arguments.seconds)
    for kind in ("files of 500 x 375", "photos"):
        if kind == "photos" and arguments.photos is None:
            continue
        files = (
            photos_of(arguments.photos, count)
            if kind == "photos"
            else [encode(synthetic(number, 375, 500), 92) for number in range(count)]
        )
        with tempfile.TemporaryDirectory() as folder:
            os.environ["KILN_CACHE"] = f"{folder}/cache"
            root = Path(folder) / "images"
            write_folder(root, files)
            raw, jpeg = filled(stored_source(root, None)), filled(stored_source(root, 90))
            ours = Arm("Kiln, copies, uint8", partial(kiln_bytes, root, raw), warm_up_batches=16)
            normalized = Arm("Kiln, copies, normalised", partial(kiln_normalized, root, raw), warm_up_batches=16)
            as_jpeg = Arm("Kiln, JPEG copies, normalised", partial(kiln_normalized, root, jpeg))
            bare = Arm("bare memory map, crop and resize, uint8", partial(bare_map, raw), warm_up_batches=0)
            peers, missing = peers_here(root, PX, 64)
            arms = [ours, normalized, as_jpeg, bare, *peers]
            take_turns(arms, rounds=rounds, seconds=seconds)
            record.show(
                f"{kind}, copies of {STORED_PX} px, images/s",
                ("", "median", "middle half", "Kiln / it", "n"),
                table(arms, ours),
            )
            print("\n".join(f"left out: {line}" for line in missing))
            rows += raw_rows(arms, f"copies of {kind}")
            if peers:
                best = best_median(peers)
                for arm, least in ((ours, 15), (normalized, 4), (as_jpeg, 1)):
                    value = middle(ratios(arm, best))[0]
                    claims.append(
                        record.Claim(f"{kind}: {arm.name} over {best.name}", value, f">= {least}", value >= least)
                    )
            value = middle(ratios(ours, bare))[0]
            claims.append(record.Claim(f"{kind}: {ours.name} over {bare.name}", value, ">= 0.8", value >= 0.8))
            for stored in (raw, jpeg):
                stored.store.close()


# ---------------------------------------------------------------------------------------------------- small images


def small_folder(root: Path, archive: Path | None, count: int) -> None:
    """Folders train/class/*.jpg of 32 px."""
    if archive is None:
        for number in range(count):
            path = root / "train" / f"class{number % 10}" / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(synthetic(number, 32, 32), 90))
        return
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if "/train/" in f"/{name}" and name.endswith(".jpg")]
        for name in names[:: max(1, len(names) // count)][:count]:
            path = root / "train" / Path(name).parent.name / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(opened.read(name))


def torchvision_small(root: Path) -> Iterator[Any]:
    from torchvision import datasets, transforms

    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    dataset = datasets.ImageFolder(str(root / "train"), transforms.Compose([*steps, transforms.Normalize(MEAN, STD)]))
    return endless(
        torch.utils.data.DataLoader(
            dataset, CIFAR_BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True
        )
    )


def timm_small(root: Path) -> Iterator[Any]:
    from timm.data import ImageDataset, create_loader

    return endless(
        create_loader(
            ImageDataset(str(root / "train")),
            (3, 32, 32),
            CIFAR_BATCH,
            is_training=True,
            num_workers=WORKERS,
            device=torch.device("cpu"),
            use_prefetcher=False,
            persistent_workers=True,
        )
    )


def kiln_small(where: Path, *, workers: int = WORKERS) -> Iterator[Any]:
    """What `kiln train` decides for such images: crops with padding, out of images that are kept once decoded."""
    from kiln.augment import OnDevice, policy
    from kiln.data.cache import ContractForm, StoredSource, open_store
    from kiln.data.images import KeptImages, PaddedCropImages
    from kiln.data.listing import recall, remember
    from kiln.data.loader import Assembler, BadFiles, TrainLoader
    from kiln.data.sampler import Cut, Shuffle
    from kiln.data.source import open_source
    from kiln.pixels import PixelContract
    from kiln.random import keys_of

    source = recall(where)
    if source is None:
        source = open_source(where)
        remember(source, cache_size="1TB")
    train = np.flatnonzero(np.array([split == "train" for split in source.splits or ["train"] * len(source)]))
    contract, keys, light = PixelContract(32, 32), keys_of(source.keys), policy("light")
    form = ContractForm(contract, fast=True)
    store = open_store(source, form, tier="disk", needed=len(source) * 32 * 32 * 3, limit_bytes=10**12)
    loader = TrainLoader(
        Assembler(
            PaddedCropImages(KeptImages(StoredSource(source, form, store), contract), 4),
            np.zeros(len(source), np.int64),
        ),
        Shuffle(train, keys[train], seed=0),
        Cut(len(train), CIFAR_BATCH, drop_last=True),
        keys=keys,
        bad_files=BadFiles(source.keys),
        draw_params=lambda epoch, of: light.draw(0, epoch, of),
        workers=workers,
    )
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return OnDevice(loader, light, device=torch.device("cpu"), mean=mean, std=std).from_step(0)


FIRST_BATCH = """
import sys, time
sys.path.insert(0, sys.argv[2])
import data_cache, torch, timm  # what is imported is not the data's to answer for
from pathlib import Path
import kiln.augment, kiln.data.cache, kiln.data.images, kiln.data.listing, kiln.data.loader, kiln.data.source
begun = time.perf_counter()
next(data_cache.kiln_small(Path(sys.argv[1])))
print(time.perf_counter() - begun)
"""


def first_batch(archive: Path) -> float:
    """Seconds from nothing to the first batch, in a fresh process, without imports."""
    command = [sys.executable, "-W", "ignore", "-c", FIRST_BATCH, str(archive), str(Path(__file__).parent)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def small(arguments: argparse.Namespace, rows: list[Any], claims: list[record.Claim]) -> None:
    count = 2000 if arguments.quick else EPOCH
    rounds, seconds = (1, 0.3) if arguments.quick else (arguments.rounds, arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KILN_CACHE"] = f"{folder}/cache"
        root = Path(folder) / "small"
        small_folder(root, arguments.cifar, count)
        ours = Arm("Kiln", partial(kiln_small, root), warm_up_batches=4 + count // CIFAR_BATCH)
        ours.take_turn(0.01)
        ours.rates.clear()
        ours.warm_up_batches = 16
        tv = Arm("torchvision", partial(torchvision_small, root), warm_up_batches=5)
        arms = [ours, tv, Arm("timm", partial(timm_small, root), warm_up_batches=5)]
        take_turns(arms, rounds=rounds, seconds=seconds)
        record.show(
            "32 px, crop with padding and flip, images/s",
            ("", "median", "middle half", "Kiln / it", "n"),
            table(arms, ours),
        )
        rows += raw_rows(arms, "32 px")
        for arm, least in ((tv, 20), (arms[2], 40)):
            value = middle(ratios(ours, arm))[0]
            claims.append(record.Claim(f"32 px: Kiln over {arm.name}", value, f">= {least}", value >= least))
        archive = Path(folder) / "small.zip"
        if arguments.cifar is not None and not arguments.quick:
            archive = arguments.cifar
        else:
            with zipfile.ZipFile(archive, "w") as opened:
                for path in sorted(root.rglob("*.jpg")):
                    opened.write(path, str(path.relative_to(root)))
        os.environ["KILN_CACHE"] = f"{folder}/first"
        cold = first_batch(archive)
        stream = kiln_small(archive)
        for _ in range(2 + count // CIFAR_BATCH):
            next(stream)
        stream.close()
        del stream
        warm = sorted(first_batch(archive) for _ in range(1 if arguments.quick else 5))
        shutil.rmtree(f"{folder}/first", ignore_errors=True)
        rows += [{"work": "first batch", "cold_seconds": cold, "warm_seconds": warm}]
        claims.append(record.Claim("first batch from the archive, seconds", cold, "<= 3", cold <= 3))
        median = warm[len(warm) // 2]
        claims.append(record.Claim("first batch with its images kept, seconds", median, "<= 0.3", median <= 0.3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--photos", type=Path, help="a zip of real photos, measured beside the made ones")
    parser.add_argument("--cifar", type=Path, help="a zip of CIFAR-10 as JPEG files, instead of made images")
    parser.add_argument("--only", choices=("copies", "small"))
    arguments = parser.parse_args()
    rows: list[Any] = []
    claims: list[record.Claim] = []
    if arguments.only != "small":
        copies(arguments, rows, claims)
    if arguments.only != "copies":
        small(arguments, rows, claims)
    return record.finish(claims, rows, packages=PACKAGES, path=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
