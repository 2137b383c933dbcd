import sys
from functools import partial

import pytest
import torch

from mrla_minimal import MRLABase, MRLALight, cifar_resnet
from mrla_minimal.lab import bench_attention
from mrla_minimal.lab.cost import saved_activation_bytes


@pytest.mark.parametrize("ours, naive, channels, head_dim", [
    (MRLABase, bench_attention.NaiveMRLABase, 12, 4), (MRLALight, bench_attention.NaiveMRLALight, 12, 6),
])
def test_the_yardsticks_compute_the_same(ours, naive, channels, head_dim):
    torch.manual_seed(0)
    pairs = []
    for _ in range(4):
        first, second = ours(channels, head_dim).double(), naive(channels, head_dim).double()
        second.load_state_dict(first.state_dict())
        assert second.head_dim == head_dim
        pairs.append((first, second))
    x = torch.randn(4, 2, channels, 5, 3, dtype=torch.float64)
    memories, results = [None, None], [[], []]
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for t, pair in enumerate(pairs):
        for side in (0, 1):
            output, memories[side] = pair[side](inputs[side][t], memories[side])
            results[side].append(output)
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    for side in (0, 1):
        sum((output * (t + 1)).square().sum() for t, output in enumerate(results[side])).backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-11)


def test_base_keeps_two_maps_a_layer_and_the_naive_form_a_cache_a_layer():
    layers, channels, size, batch = 18, 8, 8, 2
    one_map = batch * channels * size * size * 4
    images = torch.randn(batch, channels, size, size)
    kept = {}
    for name, kind in (("ours", MRLABase), ("naive", bench_attention.NaiveMRLABase)):
        stage = [kind(channels, 4) for _ in range(layers)]
        run = partial(bench_attention.run_stage, stage)
        kept[name] = saved_activation_bytes(run, images) / one_map
    # besides the maps: rows, weights and keys, a few numbers a layer
    assert 2 * layers <= kept["ours"] < 2 * layers + 9
    assert kept["naive"] > layers * (layers + 1) / 2


def test_overheads_are_printed_as_ratios_to_plain(capsys):
    bench_attention.print_overheads({"plain": [1.0, 1.0, 1.2], "depthwise": [1.1, 1.1, 1.3],
                           "ours": [1.2, 1.3, 1.3], "naive": [1.4, 1.5, 1.7]})
    output = capsys.readouterr().out
    assert "ours / naive: 0.40 (of medians); round by round 0.50 (0.20 to 0.60)" in output
    assert "naive over plain        50.0 % of the plain step (40.0 to 50.0)" in output


def test_resnet_50_is_measured_as_it_is_printed(capsys, monkeypatch):
    """With a smaller net in its place, on the CPU: without peaks, which the GPU's allocator tells."""
    monkeypatch.setattr(bench_attention, "imagenet_resnet", lambda depth, layer_attention: cifar_resnet(
        8, width=32, num_classes=1000, layer_attention=layer_attention))
    measured = list(bench_attention.bench_resnet50(torch.device("cpu"), ("eager",), batch=2, size=16,
                                                   rounds=2, progress=False))
    output = capsys.readouterr().out
    assert [line["attention"] for line in measured] == ["mrla-base", "mrla-light"]
    for line in measured:
        assert {name: len(rounds) for name, rounds in line["seconds"].items()} == dict.fromkeys(
            ("plain", "depthwise", "ours", "naive"), 2)
        assert line["precision"] == "float32" and line["peak_bytes"] == {}
        assert f"{line['attention']}: ResNet-50, 16 x 16, batch 2" in output


def test_each_benchmark_prints_its_ratios(capsys):
    bench_attention.bench_base(layers=3, channels=16, size=4, batch=2, progress=False)
    bench_attention.bench_light("eager", batch=4, progress=False)
    output = capsys.readouterr().out
    for text in ("kept for the backward pass: ours", "ours / naive", "depthwise over plain"):
        assert text in output


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc's allocator")
def test_the_process_that_keeps_memory_runs_whatever_lies_beside_and_its_end_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in ("random.py", "mrla_minimal.py"):
        (tmp_path / name).write_text("raise SystemExit(3)")
    bench_attention.without_page_faults(bench_attention.choose_device)      # stands for a benchmark
    with pytest.raises(OSError, match="failed, with exit status 1"):
        bench_attention.without_page_faults(bench_attention.page_faults)    # which lacks an argument
