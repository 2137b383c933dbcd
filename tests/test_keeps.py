"""The explorable "What a layer keeps": each number that it shows is the library's own count."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from mrla_minimal import LayerAttention, MRLABase, MRLALight
from mrla_minimal.lab.cost import count_macs, saved_activation_bytes
from mrla_minimal.layer_attention import pool, split_heads

SCRIPT = Path(__file__).parents[1] / "site/static/keeps.js"
SIZES = [(1, 8, 4, 1), (2, 16, 4, 3), (3, 64, 7, 2), (6, 32, 8, 5), (5, 128, 4, 2)]


class RunningState(nn.Module):
    """Eq. 6 without its softmax: one state of d maps, which the library has no class for."""

    def __init__(self, channels):
        super().__init__()
        light = MRLALight(channels)
        self.query, self.key, self.value, self.head_dim = light.query, light.key, light.value, light.head_dim

    def forward(self, x, memory=None):
        row, value = pool(x), self.value(x)
        query, key = (split_heads(part(row), self.head_dim)[..., None, None, None]
                      for part in (self.query, self.key))               # (batch, heads, d, 1, 1, 1)
        batch, channels, height, width = value.shape
        value = value.view(batch, -1, 1, self.head_dim, height, width)
        memory = key * value if memory is None else memory + key * value        # S^t
        return (query * memory).sum(dim=2).view_as(x), memory


class Stage(nn.Module):
    """A bare stage: each layer reads a map of its own, a sum, so that nothing else is kept."""

    def __init__(self, attention, layers, channels):
        super().__init__()
        self.layers = nn.ModuleList(attention(channels) for _ in range(layers))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        self.memory, total = None, 0.0
        for layer in self.layers:
            output, self.memory = layer(images + self.shift, self.memory)
            total = total + output
        return total


def numbers_in(memory):
    if isinstance(memory, torch.Tensor):
        return memory.numel()
    return sum(map(numbers_in, memory))


@pytest.fixture(scope="module")
def shown():
    """What the page's script counts for each of SIZES: {memory: its numbers}."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs the page's script outside a browser")
    asked = [dict(zip(("layers", "channels", "size", "batch"), sizes, strict=True)) for sizes in SIZES]
    code = (f"const {{ countMemories }} = require({json.dumps(str(SCRIPT))});"
            f"console.log(JSON.stringify({json.dumps(asked)}.map(countMemories)))")
    run = subprocess.run([node, "-e", code], capture_output=True, text=True, timeout=60, check=True)
    return {sizes: {one["name"]: one for one in counted}
            for sizes, counted in zip(SIZES, json.loads(run.stdout), strict=True)}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("name", "attention"), [("Eq. 4", LayerAttention), ("MRLA-base", MRLABase),
                                                 ("running state", RunningState), ("MRLA-light", MRLALight)])
def test_the_numbers_are_the_librarys(shown, sizes, name, attention):
    layers, channels, size, batch = sizes
    counted, stage = shown[sizes][name], Stage(attention, layers, channels)
    images, one_map = torch.zeros(batch, channels, size, size), 4 * batch * channels * size**2
    kept = saved_activation_bytes(stage, images)
    assert counted["keptBytes"] == pytest.approx(kept, rel=1e-6)
    # what is left over, the rows, comes to less than a map where a map is large
    assert counted["kept"] * one_map <= kept and counted["handed"] * one_map <= counted["handedBytes"]
    assert counted["handedBytes"] == pytest.approx(4 * numbers_in(stage.memory), rel=1e-6)
    macs = count_macs(stage, size, in_channels=channels)
    if name == "running state":     # no cost rule knows it: writing and reading the state, d maps each
        macs += 2 * layers * stage.layers[0].head_dim * channels * size**2
    assert counted["macs"] == pytest.approx(macs, rel=1e-6)


def test_the_maps_kept_are_those_of_the_lessons(shown):
    for (layers, *_), counted in shown.items():
        assert counted["Eq. 4"]["kept"] == layers * (layers + 3) // 2
        assert counted["MRLA-base"]["kept"] == 2 * layers
        assert counted["MRLA-light"]["kept"] == 3 * layers - 1
