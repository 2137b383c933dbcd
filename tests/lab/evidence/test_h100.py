"""What data/results/README.md says of speed on a GPU is what was measured there."""

import statistics
from pathlib import Path

from mrla_minimal.lab.evidence import SUITES
from mrla_minimal.lab.files import read_records

RESULTS = Path(__file__).resolve().parents[3] / "data" / "results"
LINES = read_records(RESULTS / "h100.jsonl")[0]
TEXT = (RESULTS / "README.md").read_text(encoding="utf-8")
GIB = 2**30


def of(what):
    return [line for line in LINES if line["what"] == what]


def rate(way, models, variant):
    found = [line["images_per_second"] for line in of("rate")
             if (line["way"], line["models"], line["variant"]) == (way, models, variant)]
    return f"{found[0]:,.0f}" if found else "-"


def test_the_rates_of_the_suite():
    variants = SUITES["scratch-gpu"].variants
    for start, way, models in (("8 processes, launch by launch (14 gain nothing)", "eager", 8),
                               ("3 processes, each step one CUDA graph (6 gain nothing)", "graph", 3),
                               ("12 graphs in one process, a stream each", "streams", 12)):
        rates = " | ".join(rate(way, models, variant) for variant in variants)
        assert f"| {start} | {rates} |" in TEXT
    for more, fewer, way in ((14, 8, "eager"), (6, 3, "graph")):        # "gain nothing"
        for variant in variants:
            ratio = float(rate(way, more, variant).replace(",", "")) / float(
                rate(way, fewer, variant).replace(",", ""))
            assert abs(ratio - 1) < 0.01
    costs = {way: sum(1 / float(rate(way, models, variant).replace(",", "")) for variant in variants)
             for way, models in (("eager", 8), ("graph", 3))}
    assert f"They gained {costs['eager'] / costs['graph']:.2f} only," in TEXT


def test_the_times_of_resnet20():
    rows = {line["launches"]: line for line in of("resnet20")}
    for launches, line in rows.items():
        minutes, seconds = divmod(round(line["seconds_a_run"]), 60)
        row = f"| {launches} | {line['images_per_second']:,.0f} | {minutes} min {seconds} s |"
        assert row in TEXT
        assert f"{line['extrapolated_from_steps']:,}" in TEXT
    eager, graph = (line["images_per_second"] for line in rows.values())
    assert f"{graph / eager:.1f} times as fast" in TEXT


def test_the_overheads_in_resnet50():
    for line in of("resnet50"):
        median = {form: statistics.median(seconds) for form, seconds in line["seconds"].items()}
        peak = {form: f"{size / GIB:.1f} GiB" for form, size in line["peak_bytes"].items()}
        share = (median["ours"] - median["plain"]) / (median["naive"] - median["plain"])
        row = (f"| {line['attention']} | {median['ours'] / median['plain']:.2f} | {peak['ours']} | "
               f"{share:.2f} of its overhead, naive {peak['naive']} |")
        assert row in TEXT
        assert f"| plain | 1 | {peak['plain']} | |" in TEXT
    assert f"| depthwise | {median['depthwise'] / median['plain']:.2f} | {peak['depthwise']} | |" in TEXT
