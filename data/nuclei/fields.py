"""Which images were cut out of one larger field? Those whose edges go on in each other: fields.json.

    python data/nuclei/fields.py STAGE1_TRAIN_FOLDER fields.json

The last column of one image is held against the first column of every other of its size and kind, and the
last row against the first row. A join is the best partner whose correlation is above 0.9 and whose step is no
larger than steps inside the image are. Joined images are one field. Needs numpy and Pillow.
"""

import collections
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def joins(images):
    """[(i, j), ...]: image j goes on where image i ends, to its right or below. images (n, height, width)."""
    found = []
    for turned in (images.transpose(0, 2, 1), images):          # columns, then rows
        last, before, first = turned[:, -1], turned[:, -2], turned[:, 0]        # (n, pixels)
        step_inside = np.abs(last - before).mean(axis=1)
        for i, edge in enumerate(last):
            correlation = np.array([
                np.corrcoef(edge, other)[0, 1] if j != i and edge.std() > 1 and other.std() > 1 else 0.0
                for j, other in enumerate(first)])
            j = int(correlation.argmax())
            if correlation[j] > 0.9 and np.abs(edge - first[j]).mean() < 2.5 * step_inside[i] + 0.5:
                found.append((i, j))
    return found


def fields(folder):
    """{image: field}, ten characters each: a field bears the name of one of its images."""
    sizes, grey = collections.defaultdict(list), {}
    for path in sorted(Path(folder).glob("*/images/*.png")):
        colours = np.asarray(Image.open(path).convert("RGB")).astype(np.float32)
        name = path.parent.parent.name[:10]
        grey[name] = colours.mean(axis=2)
        is_stained = bool(np.abs(colours[..., 0] - colours[..., 1]).max() > 5)
        sizes[grey[name].shape, is_stained].append(name)
    parent = {name: name for name in grey}

    def root(name):
        while parent[name] != name:
            name = parent[name]
        return name

    for names in sizes.values():
        for i, j in joins(np.stack([grey[name] for name in names])):
            parent[root(names[i])] = root(names[j])
    return {name: root(name) for name in grey}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(fields(sys.argv[1]), indent=0), encoding="utf-8")
