"""Textures of the layered scenes: procedural ones, and photos that well-known packages bring along or a folder holds.

The packages' photos, where these packages are installed, with their licences as the packages state them:
- scikit-image (`skimage/data`): astronaut, hubble_deep_field (NASA, public domain), rocket (SpaceX, CC0), brick,
  gravel, grass (CC0Textures, CC0), camera, chelsea, coffee, retina (CC0 by their photographers), moon and coins
  (no known copyright restrictions), motorcycle_left (CC0);
- scikit-learn (`sklearn/datasets/images`): china, flower (CC BY 2.0, danielbuechele and vultilion on Flickr);
- matplotlib (`mpl-data/sample_data`): grace_hopper (US Navy, public domain).
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
from PIL import Image

try:
    import cv2
except ImportError:  # the function that needs it says what to install
    cv2 = None

SIDE = 320  # pixels of a texture, both axes
PACKAGE_PHOTOS = {
    "skimage": [
        "data/astronaut.png",
        "data/brick.png",
        "data/camera.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/coins.png",
        "data/grass.png",
        "data/gravel.png",
        "data/hubble_deep_field.jpg",
        "data/moon.png",
        "data/motorcycle_left.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
    "matplotlib": ["mpl-data/sample_data/grace_hopper.jpg"],
}


def load_opencv():
    """The `cv2` module with one thread. `ImportError` that says what to install."""
    if cv2 is None:
        raise ImportError('layered scenes need OpenCV and PyAV: pip install "fourdthinker-hf[annotate]"')
    cv2.setNumThreads(1)
    return cv2


def package_photos() -> list[Path]:
    """The photos of `PACKAGE_PHOTOS` whose packages are installed. The packages are found, not imported."""
    found = []
    for package, names in PACKAGE_PHOTOS.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            found += [path for name in names if (path := Path(folder) / name).is_file()]
    return found


def folder_photos(folder: str | os.PathLike) -> list[Path]:
    """The JPEG and PNG files of `folder`, sorted. `ValueError` if there are none."""
    found = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise ValueError(f"{folder}: holds no JPEG or PNG file to take textures from")
    return found


def make_textures(
    rng: np.random.Generator, count: int, photos: list[Path] = (), photo_share: float = 0.5
) -> list[np.ndarray]:
    """`count` textures (SIDE, SIDE, 3) uint8 RGB; about `photo_share` of them are cut out of `photos`, if any."""
    load_opencv()
    images = [np.asarray(Image.open(path).convert("RGB")) for path in photos]
    textures = []
    for _ in range(count):
        if images and rng.random() < photo_share:
            texture = _photo(rng, images[rng.integers(len(images))])
        else:
            texture = (_noise, _shapes, _shapes, _gradient)[rng.integers(4)](rng)
        if rng.random() < 0.5:
            gain, offset = rng.uniform(0.4, 1.3, 3), rng.uniform(-30, 30)
            texture = np.clip(texture * gain + offset, 0, 255).astype(np.uint8)
        if rng.random() < 0.5:
            texture = cv2.GaussianBlur(texture, (0, 0), rng.uniform(0.4, 1.5))
        textures.append(np.ascontiguousarray(texture))
    return textures


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(rng.integers(0, 256, 3).tolist())


def _photo(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A random square of a photo, mirrored now and then."""
    height, width = image.shape[:2]
    side = int(min(height, width) * rng.uniform(0.35, 1))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    cut = cv2.resize(image[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cut[:, ::-1] if rng.random() < 0.5 else cut


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Octaves of smooth noise, streaked now and then, in colour or grey."""
    total = np.zeros((SIDE, SIDE, 3), np.float32)
    coarsest = rng.integers(1, 4)
    for octave in range(coarsest, coarsest + rng.integers(2, 6)):
        cells = 2**octave
        grid = rng.normal(size=(cells, max(1, cells // rng.choice([1, 1, 1, 4])), 3)).astype(np.float32)
        layer = cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        if rng.random() < 0.5:
            layer[...] = layer.mean(-1, keepdims=True)
        total += layer * rng.uniform(0.4, 0.9) ** (octave - coarsest)
    return np.clip(128 + total * rng.uniform(15, 60) + rng.uniform(-60, 60, 3), 0, 255).astype(np.uint8)


def _shapes(rng: np.random.Generator) -> np.ndarray:
    """Circles, boxes, lines, polygons and writing at random places."""
    plain = np.full((SIDE, SIDE, 3), _colour(rng), np.uint8)
    image = _noise(rng) if rng.random() < 0.5 else plain
    for _ in range(rng.integers(5, 60)):
        point, size, kind = rng.integers(0, SIDE, 2), int(rng.integers(4, 90)), rng.integers(5)
        corner, end = (point + rng.integers(3, size + 3, 2)).tolist(), rng.integers(0, SIDE, 2).tolist()
        if kind == 0:
            cv2.circle(image, point.tolist(), size // 2, _colour(rng), -1)
        elif kind == 1:
            cv2.rectangle(image, point.tolist(), corner, _colour(rng), int(rng.choice([-1, -1, 2])))
        elif kind == 2:
            cv2.line(image, point.tolist(), end, _colour(rng), int(rng.integers(1, 6)))
        elif kind == 3:
            polygon = (point + rng.integers(-size, size, (5, 2))).astype(np.int32)
            cv2.fillPoly(image, [polygon], _colour(rng))
        else:
            letters = "".join(map(chr, rng.integers(65, 91, 8)))
            font, scale, thick = int(rng.integers(0, 5)), rng.uniform(0.3, 1.5), int(rng.integers(1, 3))
            cv2.putText(image, letters, point.tolist(), font, scale, _colour(rng), thick, cv2.LINE_AA)
    return image


def _gradient(rng: np.random.Generator) -> np.ndarray:
    """A smooth change of colour with a few ellipses: sky, plain walls, water."""
    corners = rng.integers(0, 256, (rng.integers(2, 4), rng.integers(2, 4), 3)).astype(np.uint8)
    image = cv2.resize(corners, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(0, 8)):
        centre, axes = rng.integers(0, SIDE, 2).tolist(), rng.integers(3, 60, 2).tolist()
        cv2.ellipse(image, centre, axes, int(rng.integers(180)), 0, 360, _colour(rng), -1)
    return image
