"""The rival of every detector of nuclei, tuned on val and tested once: data/results/nuclei-rival.json.

    python data/nuclei/rival.py

A minute. Every setting of `mrla_minimal/lab/watershed.py` is tried on val; the one of the best mask AP there
is measured on test. The file holds both, and what was found on test, field by field (`lab/fields.py`).
"""

import itertools
from pathlib import Path

from tqdm import tqdm

from mrla_minimal.lab.data.nuclei import Nuclei, load_nuclei
from mrla_minimal.lab.engine.detection import precision_by_kind
from mrla_minimal.lab.fields import by_field, to_text
from mrla_minimal.lab.files import write_json
from mrla_minimal.lab.precision import average_precision
from mrla_minimal.lab.watershed import DISTANCES, LEAST_RANGES, RANKINGS, find_nuclei

DATA = Path(__file__).parents[1]


def tried(nuclei: Nuclei) -> list[dict]:
    """Every setting, with its box AP and its mask AP from 0 to 1."""
    images, labels, _ = nuclei.tiles()
    rows = []
    for distance, least_range in tqdm(list(itertools.product(DISTANCES, LEAST_RANGES)), unit="setting"):
        for ranking, lists in find_nuclei(images, labels, distance, least_range, RANKINGS).items():
            reached = {what: average_precision(found)["AP"] for what, found in lists.items()}
            rows.append({"distance": distance, "least_range": least_range, "ranking": ranking, **reached})
    return rows


def tested(nuclei: Nuclei, distance: int, least_range: int, ranking: str) -> dict:
    """Box AP and mask AP of one setting, of all images and by kind of image; and the masks field by field."""
    images, labels, which = nuclei.tiles()
    lists = find_nuclei(images, labels, distance, least_range, [ranking])[ranking]
    kinds, fields = ([of[image] for image in which] for of in (nuclei.kinds, nuclei.fields))
    reached = {f"test_{name}": value for name, value in precision_by_kind(lists, kinds).items()}
    return {**reached, "test_mask_fields": to_text(by_field(lists["mask"], fields))}


def main() -> None:
    rows = tried(load_nuclei("val", DATA))
    best = max(rows, key=lambda row: row["mask"])
    setting = {name: best[name] for name in ("distance", "least_range", "ranking")}
    reached = tested(load_nuclei("test", DATA), **setting)
    write_json(DATA / "results" / "nuclei-rival.json", {"setting": setting, **reached, "val": rows})
    print(f"{setting}: test box AP {100 * reached['test_box_AP']:.1f}, "
          f"mask AP {100 * reached['test_mask_AP']:.1f}")


if __name__ == "__main__":
    main()
