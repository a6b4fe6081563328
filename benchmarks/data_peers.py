"""The peers' ways from JPEG files to batches: each as its documentation shows, with two worker processes."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_work import Arm

WORKERS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = (0.08, 1.0)


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch, with the workers kept."""
    while True:
        for batch in loader:
            yield batch[0] if isinstance(batch, (list, tuple)) else batch


def torch_loader(dataset: Any, batch_size: int) -> Iterator[Any]:
    return endless(
        torch.utils.data.DataLoader(
            dataset, batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True
        )
    )


def torchvision_pil(root: Path, px: int, batch_size: int) -> Iterator[Any]:
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(px, scale=SCALE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    return torch_loader(datasets.ImageFolder(str(root), transform), batch_size)


def torchvision_tensor(root: Path, px: int, batch_size: int) -> Iterator[Any]:
    from torchvision import datasets
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(px, scale=SCALE, antialias=True), v2.RandomHorizontalFlip()]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    dataset = datasets.ImageFolder(str(root), transform, loader=lambda path: decode_image(path, ImageReadMode.RGB))
    return torch_loader(dataset, batch_size)


def timm_fast(root: Path, px: int, batch_size: int, *, color_jitter: float | None = None) -> Iterator[Any]:
    from timm.data import ImageDataset, create_loader

    return endless(
        create_loader(
            ImageDataset(str(root)),
            (3, px, px),
            batch_size,
            is_training=True,
            scale=SCALE,
            color_jitter=color_jitter,
            num_workers=WORKERS,
            device=torch.device("cpu"),
            use_prefetcher=False,
            persistent_workers=True,
        )
    )


def timm_defaults(root: Path, px: int, batch_size: int) -> Iterator[Any]:
    return timm_fast(root, px, batch_size, color_jitter=0.4)


def fastai_minimal(root: Path, px: int, batch_size: int) -> Iterator[Any]:
    from fastai.vision.all import Flip, ImageDataLoaders, Normalize, RandomResizedCrop

    loaders = ImageDataLoaders.from_folder(
        root,
        valid_pct=0.01,
        bs=batch_size,
        num_workers=WORKERS,
        item_tfms=RandomResizedCrop(px, min_scale=SCALE[0]),
        batch_tfms=[Flip(), Normalize.from_stats(MEAN, STD)],
        device=torch.device("cpu"),
    )
    return endless(loaders.train)


def ultralytics_minimal(root: Path, px: int, batch_size: int) -> Iterator[Any]:
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import ClassificationDataset

    changes = {"imgsz": px, "scale": 1 - SCALE[0], "fliplr": 0.5, "flipud": 0.0, "erasing": 0.0, "auto_augment": None}
    changes |= {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "cache": False}
    dataset = ClassificationDataset(str(root), args=get_cfg(overrides=changes), augment=True)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True
    )
    while True:
        for batch in loader:
            yield batch["img"]


def webdataset(root: Path, px: int, batch_size: int) -> Iterator[Any]:
    import webdataset as wds
    from torchvision import transforms

    shards = root.parent / f"{root.name}-shards"
    shards.mkdir(exist_ok=True)
    files = sorted(root.rglob("*.jpg"))
    for number in range(WORKERS):
        with tarfile.open(shards / f"{number:06d}.tar", "w") as archive:
            for place, path in enumerate(files[number::WORKERS]):
                for suffix, content in (("jpg", path.read_bytes()), ("cls", b"0")):
                    member = tarfile.TarInfo(f"{place:06d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    steps = [transforms.RandomResizedCrop(px, scale=SCALE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    dataset = wds.WebDataset(urls, shardshuffle=False, empty_check=False, resampled=True).shuffle(256).decode("pil")
    dataset = (
        dataset.to_tuple("jpg", "cls").map_tuple(transform, lambda label: label).batched(batch_size, partial=False)
    )
    return endless(wds.WebLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True))


def dali_cpu(root: Path, px: int, batch_size: int) -> Iterator[Any]:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch_size, num_threads=WORKERS, device_id=None, prefetch_queue_depth=2)
    def pipeline() -> Any:
        files, _ = fn.readers.file(file_root=str(root), random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(
            files, device="cpu", random_area=SCALE, random_aspect_ratio=(3 / 4, 4 / 3)
        )
        images = fn.resize(images, size=[px, px], interp_type=types.INTERP_LINEAR, antialias=True)
        levels = {"mean": [255 * value for value in MEAN], "std": [255 * value for value in STD]}
        return fn.crop_mirror_normalize(
            images, mirror=fn.random.coin_flip(), output_layout="CHW", dtype=types.FLOAT, **levels
        )

    built = pipeline()
    built.build()
    while True:
        yield built.run()[0]


PEERS: dict[str, tuple[str, Callable[[Path, int, int], Iterator[Any]]]] = {
    "torchvision, PIL": ("torchvision", torchvision_pil),
    "torchvision, tensor v2": ("torchvision", torchvision_tensor),
    "timm": ("timm", timm_fast),
    "timm, with its colour jitter": ("timm", timm_defaults),
    "fastai": ("fastai", fastai_minimal),
    "Ultralytics": ("ultralytics", ultralytics_minimal),
    "WebDataset": ("webdataset", webdataset),
    "DALI, CPU": ("nvidia.dali", dali_cpu),
}


def peers_here(
    root: Path, px: int, batch_size: int, *, only: tuple[str, ...] | None = None
) -> tuple[list[Arm], list[str]]:
    """The arms of those that are installed and start, and why others are left out."""
    arms, missing = [], []
    for name, (module, opening) in PEERS.items():
        if only is not None and name not in only:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
                arm = Arm(name, lambda opening=opening: opening(root, px, batch_size))
                arm.take_turn(0.1)
        except Exception as error:
            missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")
            continue
        arm.rates.clear()
        arms.append(arm)
    return arms, missing


def _bare(paths: list[str], px: int, counter: Any, stop: Any, seed: int, library: str) -> None:
    """Decode and crop as fast as one process can: no batch, no queue, no pixel leaves it."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    out = np.empty((px, px, 3), np.uint8)
    contents = [Path(path).read_bytes() for path in paths]
    if library == "opencv":
        import cv2

        cv2.setNumThreads(1)
    from kiln.data.decode import crop_resize, open_jpeg

    while not stop.value:
        for content in contents:
            if library == "opencv":
                image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            else:
                encoded = open_jpeg(content, max_pixels=10**9)
                image = encoded.decode()  # type: ignore[union-attr]
            height, width = image.shape[:2]
            area, ratio = rng.uniform(*SCALE) * height * width, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            wide, tall = min(width, int((area * ratio) ** 0.5) or 1), min(height, int((area / ratio) ** 0.5) or 1)
            left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - tall + 1))
            if library == "opencv":
                cv2.resize(
                    image[top : top + tall, left : left + wide], (px, px), dst=out, interpolation=cv2.INTER_LINEAR
                )
            else:
                crop_resize(image, (left, top, left + wide, top + tall), out, interpolation="bilinear")
            counter.value += 1
            if stop.value:
                return


class BareProcesses(Arm):
    """Two simultaneous processes that only decode and crop: what two cores can do at most."""

    def __init__(self, paths: list[Path], px: int, library: str) -> None:
        super().__init__(f"bare {library}, two processes, uint8", lambda: iter(()))
        self.paths, self.px, self.library = [str(path) for path in paths], px, library

    def take_turn(self, seconds: float) -> None:
        context = multiprocessing.get_context("fork")
        counters = [context.Value("q", 0, lock=False) for _ in range(WORKERS)]
        stop = context.Value("b", 0, lock=False)
        workers = [
            context.Process(
                target=_bare, args=(self.paths[seed::WORKERS], self.px, counters[seed], stop, seed, self.library)
            )
            for seed in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        while min(counter.value for counter in counters) < 50:
            time.sleep(0.01)
        before, begun = sum(counter.value for counter in counters), time.perf_counter()
        time.sleep(seconds)
        self.rates.append((sum(counter.value for counter in counters) - before) / (time.perf_counter() - begun))
        stop.value = 1
        for worker in workers:
            worker.join()
