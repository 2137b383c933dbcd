"""The rival that nobody has to train: a threshold, a distance transform, a watershed.

    grey = grey_levels(tile)                                    # uint8 (3, height, width)
    numbers = segment(grey, distance=5, least_range=40)         # 0 background, k nucleus k
    scores = score(grey, numbers, "ring")

Sources: N. Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9 (1979);
F. Meyer, Topographic distance and watershed lines, Signal Processing 38 (1994).

scipy has the distance transform. Its `watershed_ift` is none for a distance map: it floods by the steps
between neighbours, which are about the same everywhere there, and not by height. So `flood` stands here.
"""

import dataclasses
import heapq
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from mrla_minimal.boxes import label_boxes
from mrla_minimal.lab import arguments
from mrla_minimal.lab.data.nuclei import SMALLEST, instances, masks_of
from mrla_minimal.lab.precision import Found, found_by_overlap

DISTANCES = (3, 5, 7)       # pixels: of two peaks of the distance map that are closer, one counts
LEAST_RANGES = (20, 40, 80)                             # grey levels: a tile that spans fewer is empty
RANKINGS = ("equal", "size", "contrast", "ring")        # what a nucleus scores: see `score`
RING = 3                    # pixels around a nucleus, for the ranking of that name


def grey_levels(image: Tensor) -> np.ndarray:
    """uint8 (3, height, width) -> uint8 (height, width), nuclei brighter than what is around them.

    In a picture with colours nuclei are stained, and darker: it is inverted.
    """
    colours = image.numpy().astype(float)
    grey = colours.mean(axis=0)
    stained = np.abs(colours[0] - colours[1]).max() > 5         # a grey picture differs by 1 or 2, from WebP
    return np.rint(255 - grey if stained else grey).astype(np.uint8)


def otsu(grey: np.ndarray) -> int:
    """Otsu's threshold of grey levels 0 to 255: pixels above it are one class, all others the second.

    Of all thresholds it has the largest variance between the two classes, and so the least inside them.
    """
    counts = np.bincount(grey.ravel(), minlength=256)
    low = counts.cumsum()                                       # (256,): pixels at or below each level
    high = low[-1] - low
    total = (counts * np.arange(256)).cumsum()
    means = total / low.clip(min=1), (total[-1] - total) / high.clip(min=1)
    return int((low * high * (means[0] - means[1]) ** 2).argmax())


def flood(height: np.ndarray, markers: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The watershed: from numbered markers down over a map, the highest pixel first: numbers, 0 outside.

    height (rows, columns); markers integers, 0 where there is none; inside boolean. Each pixel inside gets
    the number of the neighbour, of four, from which the flood reaches it first.
    """
    width = height.shape[1] + 2                                 # a border, so that every pixel has neighbours
    level = np.pad(-height, 1).ravel().tolist()
    dry = np.pad(inside & (markers == 0), 1).ravel().tolist()
    numbers = np.pad(markers, 1).ravel().tolist()
    shore = [(level[pixel], pixel) for pixel, number in enumerate(numbers) if number]
    heapq.heapify(shore)
    while shore:
        _, pixel = heapq.heappop(shore)
        for neighbour in (pixel - width, pixel - 1, pixel + 1, pixel + width):
            if dry[neighbour]:
                dry[neighbour] = False
                numbers[neighbour] = numbers[pixel]
                heapq.heappush(shore, (level[neighbour], neighbour))
    return np.array(numbers).reshape(-1, width)[1:-1, 1:-1]


def segment(grey: np.ndarray, distance: int, least_range: int) -> np.ndarray:
    """Nuclei in grey levels (height, width): integers of that shape, 0 background, k nucleus k."""
    from scipy import ndimage

    low, high = np.percentile(grey, [0.5, 99.5])
    if high - low < least_range:        # else Otsu would split the noise of an empty tile in two
        return np.zeros(grey.shape, int)
    inside = grey > otsu(grey)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), 1.0)
    peaks = inside & (depth == ndimage.maximum_filter(depth, 2 * distance + 1))
    markers, _ = ndimage.label(peaks, np.ones((3, 3)))
    numbers = flood(depth, markers, inside)
    kept = np.bincount(numbers.ravel()) >= SMALLEST
    kept[0] = False
    return (kept.cumsum() * kept)[numbers]


def score(grey: np.ndarray, numbers: np.ndarray, ranking: str) -> np.ndarray:
    """What each nucleus of `segment` scores: (nuclei,).

    "equal" 0; "size" its pixels; "contrast" its mean grey level less that of all background; "ring" the same
    less that of the background no more than 3 pixels away.
    """
    from scipy import ndimage

    places = np.arange(1, numbers.max() + 1)
    if ranking == "equal" or not len(places):
        return np.zeros(len(places))
    if ranking == "size":
        return np.bincount(numbers.ravel())[1:].astype(float)
    outside = numbers == 0
    around = np.full(len(places), grey[outside].mean() if outside.any() else 0.0)
    if ranking == "ring":
        wide = np.where(outside, ndimage.grey_dilation(numbers, 2 * RING + 1), 0)
        seen = np.isin(places, wide)            # one whose ring belongs to others has all background
        around[seen] = ndimage.mean(grey, wide, places[seen])
    return ndimage.mean(grey, numbers, places) - around


def find_nuclei(images: Tensor, labels: Tensor, distance: int = 5, least_range: int = 40,
                rankings: Iterable[str] = RANKINGS[-1:]) -> dict[str, dict[str, list[Found]]]:
    """{ranking: {"box": ..., "mask": ...}}: what is found in each tile, by overlap with what is there.

    images uint8 (tiles, 3, height, width) and labels (tiles, height, width), as `Nuclei.tiles` gives them.
    All rankings have the same boxes and masks. The defaults are the best on val (data/nuclei/rival.py).
    Raises ValueError for a ranking that is none of RANKINGS.
    """
    found = {arguments.one_of("ranking", ranking, RANKINGS): {"box": [], "mask": []} for ranking in rankings}
    for image, truth, boxes, there in zip(images, *instances(labels), strict=True):
        grey = grey_levels(image)
        numbers = segment(grey, distance, least_range)
        tile, count, there = torch.from_numpy(numbers), int(numbers.max()), int(there)
        one_class = np.zeros(count, int), np.zeros(there, int)
        unranked = found_by_overlap(label_boxes(tile[None], count)[0], masks_of(tile, count), np.zeros(count),
                                    one_class[0], boxes[:there], masks_of(truth, there), one_class[1])
        for ranking, lists in found.items():
            scores = score(grey, numbers, ranking)
            for what, one in unranked.items():
                lists[what].append(dataclasses.replace(one, scores=scores))
    return found
