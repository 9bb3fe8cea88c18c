"""What a folder of 200,000 images costs: decoding, training, and peak memory.

python benchmarks/folder_images.py [--images 200000] [--size 64] [--epochs 1]

The images are JPEG files of three colours and several sizes, made from a seed. A process of its
own decodes them into the cache, a second one opens that, a third trains on it, an MLP with 64
hidden units. Memory that is mapped from the cache can be taken back by the system at any time,
and is told apart.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from memory import measured
from PIL import Image

READ = """
import sys, pyrovae
data = pyrovae.load_data(sys.argv[1], size=int(sys.argv[2]))
"""
TRAIN = """
from pyrovae.building import build_vae
vae = build_vae(data, hidden=64, latent_dim=16)
pyrovae.fit(vae, data, epochs=int(sys.argv[3]), run_dir=sys.argv[4])
"""


def make(folder, count):
    """Blots of colour, a thousand to a folder."""

    def one(index):
        rng = np.random.default_rng(index)
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        width, height = rng.integers(70, 130, 2)
        image = Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC)
        path = folder / f"{index // 1000:03d}" / f"{index:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.save(path, quality=85)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(one, range(count), chunksize=100):
            pass


def main(count, size, epochs):
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place
        folder = Path(place, "images")
        folder.mkdir()
        start = time.perf_counter()
        make(folder, count)
        print(f"{count:,} files made in {time.perf_counter() - start:.0f} s", flush=True)
        for name, code in (("decoding", READ), ("opening", READ), ("training", READ + TRAIN)):
            cost = measured(code, folder, size, epochs, Path(place, "run"))
            print(
                f"{name}: {cost.seconds:.0f} s, peak {cost.resident:.2f} GB, "
                f"of it not mapped {cost.own:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    given = parser.parse_args()
    main(given.images, given.size, given.epochs)
