"""Which decoder and which resize training should use: rates and quality, one thread, two threads, two processes.

    python benchmarks/decoders.py [--json PATH] [--quick] [--rounds N]

A choice, not a claim against peers: JPEG files of 32 px, 0.2 and 12 megapixels, decoded and cropped to 224 px (32 px: as they
are) by Pillow (whole, and with `draft` and `reducing_gap`), torchvision, OpenCV, simplejpeg, and by nvImageCodec where it is
installed (it reads only the rows and columns of the crop). Quality is the PSNR against Pillow's whole decode, crop and
antialiased resize. Claims: what `kiln.data.decode` uses decodes to Pillow's pixels and resizes to within one level, and is
the fastest of those with antialiasing on photos of 0.2 megapixels.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import record
import torch
from data_work import encode, synthetic
from PIL import Image

from kiln.data.decode import crop_resize, open_jpeg

PX = 224
SIZES = {"32 px": (32, 32, 64), "0.2 megapixels": (375, 500, 48), "12 megapixels": (3000, 4000, 4)}
PACKAGES = (
    "torchkiln",
    "torch",
    "torchvision",
    "Pillow",
    "simplejpeg",
    "opencv-python-headless",
    "nvidia-nvimgcodec-cu12",
)
Box = tuple[int, int, int, int]
Decoder = Callable[[bytes, tuple[float, float, float]], np.ndarray]


def box_of(height: int, width: int, crop: tuple[float, float, float]) -> Box:
    """Left, top, right, bottom of a crop that is given by its share of a side and its place."""
    share, down, across = crop
    tall, wide = max(1, round(height * share)), max(1, round(width * share))
    top, left = round(down * (height - tall)), round(across * (width - wide))
    return left, top, left + wide, top + tall


def out_px(height: int) -> int:
    return PX if height > PX else height


def kiln(data: bytes, crop: tuple[float, float, float]) -> np.ndarray:
    encoded = open_jpeg(data, max_pixels=10**9)
    if encoded is None:
        raise ValueError("not for the fast path")
    px = out_px(encoded.height)
    needed = (px / crop[0], px / crop[0] * encoded.width / encoded.height)
    image = encoded.decode(at_least=needed)
    out = np.empty((px, px, 3), np.uint8)
    crop_resize(image, box_of(*image.shape[:2], crop), out, interpolation="bilinear")
    return out


def pillow(data: bytes, crop: tuple[float, float, float], *, draft: bool = False) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    px = out_px(image.height)
    if draft:
        image.draft("RGB", (math.ceil(px / crop[0]), math.ceil(px / crop[0])))
    image.load()
    part = image.crop(box_of(image.height, image.width, crop))
    return np.asarray(part.resize((px, px), Image.Resampling.BILINEAR, reducing_gap=2.0 if draft else None))


def pillow_draft(data: bytes, crop: tuple[float, float, float]) -> np.ndarray:
    return pillow(data, crop, draft=True)


def torchvision(data: bytes, crop: tuple[float, float, float]) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2.functional import resized_crop

    image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    left, top, right, bottom = box_of(image.shape[1], image.shape[2], crop)
    px = out_px(image.shape[1])
    return resized_crop(image, top, left, bottom - top, right - left, [px, px], antialias=True).permute(1, 2, 0).numpy()


def opencv(data: bytes, crop: tuple[float, float, float]) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    left, top, right, bottom = box_of(*image.shape[:2], crop)
    px = out_px(image.shape[0])
    part = image[top:bottom, left:right]
    smaller = part.shape[0] > px and part.shape[1] > px
    return cv2.resize(part, (px, px), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


_own = threading.local()  # one of its decoders serves one thread


def nvimgcodec(data: bytes, crop: tuple[float, float, float]) -> np.ndarray:
    from nvidia import nvimgcodec as nv

    if not hasattr(_own, "decoder"):
        backends = [nv.Backend(nv.CPU_ONLY)]
        _own.decoder = nv.Decoder(device_id=nv.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends)
    stream = nv.CodeStream(data)
    px = out_px(stream.height)
    left, top, right, bottom = box_of(stream.height, stream.width, crop)
    part = np.asarray(_own.decoder.decode(stream.get_sub_code_stream(region=nv.Region(top, left, bottom, right))).cpu())
    out = np.empty((px, px, 3), np.uint8)
    crop_resize(part, (0, 0, part.shape[1], part.shape[0]), out, interpolation="bilinear")
    return out


ARMS: dict[str, Decoder] = {
    "Kiln: simplejpeg, torch's resize": kiln,
    "Pillow": pillow,
    "Pillow, draft and reducing_gap": pillow_draft,
    "torchvision": torchvision,
    "OpenCV, area or linear": opencv,
    "nvImageCodec, only the crop": nvimgcodec,
}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return 99.0 if error == 0 else min(99.0, 10 * math.log10(255**2 / error))


def crops(count: int) -> list[tuple[float, float, float]]:
    rng = np.random.default_rng(0)
    return [(float(rng.uniform(0.3, 1.0)), float(rng.random()), float(rng.random())) for _ in range(count)]


def work(name: str, files: list[bytes], seconds: float) -> float:
    """Images per second of one thread."""
    torch.set_num_threads(1)
    decode, chosen, done, begun = ARMS[name], crops(len(files)), 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for data, crop in zip(files, chosen, strict=True):
            decode(data, crop)
            done += 1
    return done / (time.perf_counter() - begun)


def two_threads(name: str, files: list[bytes], seconds: float) -> float:
    rates: list[float] = []
    threads = [threading.Thread(target=lambda: rates.append(work(name, files, seconds))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds, seconds = (1, 0.05) if arguments.quick else (arguments.rounds, 0.6)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        for kind, (height, width, count) in SIZES.items():
            files = [encode(synthetic(number, height, width), 92) for number in range(count)]
            reference = [pillow(data, crop) for data, crop in zip(files, crops(count), strict=True)]
            here = {}
            for name, decode in ARMS.items():
                try:
                    made = [decode(data, crop) for data, crop in zip(files, crops(count), strict=True)]
                except Exception as error:
                    print(f"left out: {name}, {kind}: {type(error).__name__}: {str(error)[:80]}")
                    continue
                here[name] = float(np.median([psnr(one, other) for one, other in zip(made, reference, strict=True)]))
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in here}
            for _ in range(rounds):
                for name in here:
                    both = [processes.submit(work, name, files, seconds) for _ in range(2)]
                    apart = sum(future.result() for future in both)
                    found[name].append((work(name, files, seconds), two_threads(name, files, seconds), apart))
            table = []
            for name, rates in found.items():
                one, threads, apart = (float(np.median(column)) for column in zip(*rates, strict=True))
                row = {"kind": kind, "arm": name, "one": one, "two_threads": threads, "two_processes": apart}
                rows.append({**row, "psnr_db": here[name], "raw": rates})
                table.append((name, f"{one:,.0f}", f"{threads:,.0f}", f"{apart:,.0f}", f"{here[name]:.1f}"))
            record.show(f"{kind}, images/s", ("", "1 thread", "2 threads", "2 processes", "PSNR dB"), table)
    middle = {row["arm"]: row for row in rows if row["kind"] == "0.2 megapixels"}
    ours = middle["Kiln: simplejpeg, torch's resize"]
    exact = {name: row for name, row in middle.items() if row["psnr_db"] > 50 and row is not ours}
    best = max((row["two_threads"] for row in exact.values()), default=0.0)
    value = ours["two_threads"] / best if best else math.inf
    claims = [
        record.Claim("0.2 megapixels: PSNR against Pillow, dB", ours["psnr_db"], ">= 50", ours["psnr_db"] >= 50),
        record.Claim(
            "0.2 megapixels, two threads: over the best other of that quality", value, ">= 0.95", value >= 0.95
        ),
    ]
    return record.finish(claims, rows, packages=PACKAGES, path=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
