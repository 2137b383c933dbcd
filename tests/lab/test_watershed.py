"""The rival: its threshold against its definition, its flood by hand, and what is committed of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mrla_minimal.lab.fields import from_text
from mrla_minimal.lab.precision import average_precision
from mrla_minimal.lab.watershed import (
    RANKINGS,
    find_nuclei,
    flood,
    grey_levels,
    masks_of,
    otsu,
    score,
    segment,
)

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "data" / "results" / "nuclei-rival.json").read_text(encoding="utf-8"))


def discs(*centres, size=48, radius=8):
    """(height, width), True inside discs around (row, column)."""
    rows, columns = np.mgrid[:size, :size]
    return np.any([(rows - y) ** 2 + (columns - x) ** 2 < radius**2 for y, x in centres], axis=0)


def tile(inside, bright=200, dark=30):
    """A grey picture uint8 (3, height, width)."""
    return torch.from_numpy(np.where(inside, bright, dark)).to(torch.uint8).expand(3, -1, -1)


@pytest.mark.parametrize("seed", range(3))
def test_otsu_leaves_the_least_variance_inside_the_classes(seed):
    rng = np.random.default_rng(seed)
    grey = np.concatenate([rng.normal(60, 15, 300), rng.normal(170, 25, 120)]).clip(0, 255).astype(np.uint8)

    def inside(threshold):
        classes = grey[grey <= threshold], grey[grey > threshold]
        return sum(len(some) * some.var() for some in classes if len(some))

    assert inside(otsu(grey)) == pytest.approx(min(map(inside, range(256))))
    assert 70 < otsu(grey) < 160


def test_a_flood_runs_down_from_the_peaks_and_meets_in_the_valley():
    height = np.array([[1, 3, 5, 3, 2, 1, 4, 6, 2, 0, 7]], float)
    markers = np.array([[0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0]])
    inside = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1]], bool)
    # The valley is reached from its higher side first; nothing flows across what is outside.
    assert flood(height, markers, inside).tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]]
    # Not the nearer peak counts, but the side of the valley.
    slope, ends = np.array([[9, 8, 7, 6, 5, 4, 1, 2, 9]], float), np.array([[1, 0, 0, 0, 0, 0, 0, 0, 2]])
    assert flood(slope, ends, slope > 0).tolist() == [[1, 1, 1, 1, 1, 1, 1, 2, 2]]


def test_two_nuclei_that_touch_are_two():
    inside = discs((20, 16)) | discs((24, 28), radius=7)
    numbers = segment(np.where(inside, 200, 30).astype(np.uint8), distance=5, least_range=40)
    assert ((numbers > 0) == inside).all() and numbers.max() == 2
    assert {numbers[20, 16], numbers[24, 28]} == {1, 2}
    assert segment(np.where(inside, 200, 30).astype(np.uint8), distance=15, least_range=40).max() == 1


def test_an_empty_tile_is_empty():
    noise = np.random.default_rng(0).integers(20, 50, (48, 48)).astype(np.uint8)
    assert segment(noise, distance=5, least_range=40).max() == 0
    assert segment(noise, distance=5, least_range=20).max() > 0
    assert segment(np.zeros((48, 48), np.uint8), distance=5, least_range=0).max() == 0


def test_a_speck_is_no_nucleus():
    inside = discs((20, 20)) | discs((40, 40), radius=2)            # 9 pixels
    assert segment(np.where(inside, 200, 30).astype(np.uint8), distance=5, least_range=40).max() == 1


def test_stained_nuclei_are_dark():
    stained = tile(discs((20, 20)), bright=80, dark=220).clone()
    stained[0] += 20
    for picture in (tile(discs((20, 20))), stained):
        grey = grey_levels(picture)
        assert grey.dtype == np.uint8 and grey[20, 20] > 100 + grey[0, 0]


def test_what_the_rankings_score():
    grey = np.full((20, 20), 10, np.uint8)
    numbers = np.zeros((20, 20), int)
    numbers[2:6, 2:6], numbers[13:18, 12:16] = 1, 2                 # 16 pixels, 20 pixels
    grey[:10] = 40                                                  # half the background is brighter
    grey[numbers > 0] = 100
    scores = {ranking: score(grey, numbers, ranking).tolist() for ranking in RANKINGS}
    background = grey[numbers == 0].mean()
    assert scores == {"equal": [0, 0], "size": [16, 20], "contrast": pytest.approx([100 - background] * 2),
                      "ring": [60, 90]}
    for ranking in RANKINGS:
        assert score(grey, np.zeros((20, 20), int), ranking).shape == (0,)


def test_nuclei_that_leave_no_background_have_a_score():
    numbers = np.ones((12, 12), int)
    numbers[:, 6:] = 2
    for ranking in RANKINGS:
        assert np.isfinite(score(np.full((12, 12), 9, np.uint8), numbers, ranking)).all()


def test_what_is_there_is_found_and_a_bright_ghost_costs():
    inside = discs((12, 12), (34, 30))
    labels = torch.from_numpy(np.where(inside, 1 + (np.mgrid[:48, :48][0] > 24), 0))[None]
    picture = tile(inside)
    (lists,) = find_nuclei(picture[None], labels).values()
    assert average_precision(lists["box"])["AP"] == average_precision(lists["mask"])["AP"] == 1
    ghost = torch.maximum(picture, tile(discs((36, 8), radius=5), bright=250))
    found = find_nuclei(ghost[None], labels, rankings=("size", "ring"))
    by_ranking = {ranking: average_precision(lists["mask"])["AP"] for ranking, lists in found.items()}
    assert by_ranking["size"] == 1 and by_ranking["ring"] < 0.7
    with pytest.raises(ValueError, match="ranking must be one of 'equal', 'size'"):
        find_nuclei(picture[None], labels, rankings=["beauty"])
    assert masks_of(labels[0], 2).sum((1, 2)).tolist() == [int((labels == k).sum()) for k in (1, 2)]


# What is committed


def test_the_record_was_tuned_on_val_over_every_ranking_and_its_setting_is_the_default():
    rows, setting = RECORD["val"], RECORD["setting"]
    assert {row["ranking"] for row in rows} == set(RANKINGS) and len(rows) == 36
    best = max(rows, key=lambda row: row["mask"])
    assert {name: best[name] for name in setting} == setting
    *defaults, (ranking,) = find_nuclei.__defaults__
    assert setting == {"distance": defaults[0], "least_range": defaults[1], "ranking": ranking}


def test_the_records_fields_give_its_average_precision():
    kept = from_text(RECORD["test_mask_fields"])
    assert len(kept.truths) == 61
    for name, value in kept.average_precision().items():
        assert value == pytest.approx(RECORD[f"test_mask_{name}"], abs=1e-12)


def test_the_readme_says_what_the_record_says():
    text = (ROOT / "data" / "nuclei" / "README.md").read_text(encoding="utf-8")
    for what, kinds in (("box", ("", "fluorescence_", "stained_")), ("mask", ("",))):
        for kind in kinds:
            assert f"{100 * RECORD[f'test_{kind}{what}_AP']:.1f}" in text
