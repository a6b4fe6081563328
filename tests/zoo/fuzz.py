"""Decode mutated files: `python -m tests.zoo.fuzz COUNT SEED`, from the root of the repository.

Prints how many decoded or failed, by reason, as JSON. Exits with 1 at the first exception that is not a `PixelError`,
and dies with a traceback when a file takes longer than five seconds.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import random
import sys
import time

from tests.zoo import specimens

from kiln.pixels import PixelError, decode, probe

KINDS = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm", ".npy", ".mpo")
LIMIT_SECONDS = 5.0


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to four small injuries: flipped bytes, extreme lengths, cuts, doubled and lost pieces."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        # Headers hold the lengths and sizes, so half of the injuries go there.
        at = draw.randrange(min(len(found), 200) if draw.random() < 0.5 else len(found))
        kind = draw.randrange(6)
        if kind <= 1:
            found[at] = draw.randrange(256)
        elif kind == 2:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 3:
            found[at : at + 4] = draw.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff"])
        elif kind == 4:
            found[at:at] = found[at : at + draw.randrange(1, 64)]
        else:
            del found[at : at + draw.randrange(1, 64)]
        if not found:
            break
    return bytes(found)


def main(count: int, seed: int) -> int:
    """Decode `count` mutations; 0 when every failure was a `PixelError`."""
    draw = random.Random(seed)
    seeds = [s for s in specimens() if not s.reasons and s.name.endswith(KINDS) and len(s.data) < 100_000]
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for number in range(count):
        specimen = draw.choice(seeds)
        data = mutate(specimen.data, draw)
        faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
        start = time.perf_counter()
        for read in (probe, decode):
            try:
                read(data)
                outcome = "decoded"
            except PixelError as error:
                outcome = error.reason
            except BaseException as error:
                print(f"mutation {number} of {specimen.name}: {read.__name__} raised {error!r}", file=sys.stderr)
                raise
        slowest = max(slowest, time.perf_counter() - start)
        faulthandler.cancel_dump_traceback_later()
        outcomes[outcome] += 1
    print(json.dumps({"seeds": len(seeds), "slowest_seconds": slowest, "outcomes": outcomes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
