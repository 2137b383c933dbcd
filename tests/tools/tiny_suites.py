"""Suites small enough to be run by tests, and records that needed no run."""

from pathlib import Path

from tiny import tiny_cifar

from mrla_minimal.lab.evidence import Suite, run_suite
from mrla_minimal.lab.evidence.committed import export_checkpoints

RECIPE = {"depth": 8, "width": 4, "batch_size": 16, "steps": 3, "device": "cpu"}
VARIANTS = {"plain": {"layer_attention": None}, "mrla-light": {"layer_attention": "mrla-light"}}


def tiny_suite(**changes):
    """Two variants, two seeds, three steps a run."""
    fields = {"name": "tiny", "variants": VARIANTS, "recipe": RECIPE, "seeds": (0, 1),
              "contrasts": (("mrla-light", "plain"),)}
    return Suite(**{**fields, **changes})


def run_tiny(tmp_path, suite=None, **changes):
    """The records of a suite run on the tiny images, in tmp_path."""
    return run_suite(suite or tiny_suite(), tmp_path / "records.jsonl", runs=tmp_path / "runs",
                     data=tiny_cifar(), progress=False, **changes)


def record(variant, seed, accuracy, **changes):
    """A record as a suite "s" would have it, of a run that was never made."""
    return {"suite": "s", "variant": variant, "seed": seed, "phase": "final", "test_accuracy": accuracy,
            "source": "cifar10", "fingerprint": "f", "learning_rate": 0.1, "id": f"{variant}{seed}",
            "config": {"layer_attention": None if variant == "plain" else variant}, **changes}


def diverged(variant, seed):
    """The record of a run that came to no accuracy."""
    return {"id": f"{variant}{seed}", "suite": "s", "variant": variant, "seed": seed, "phase": "final",
            "learning_rate": 0.1, "test_accuracy": None, "diverged": "the loss is nan"}


def four_variants(**changes):
    """(suite "s" of four variants, their accuracies, their records): eight seeds of each.

    Against plain, light is better, depthwise only before Holm, and uniform within 0.3 points.
    """
    variants = {name: {"layer_attention": name} for name in ("mrla-light", "depthwise", "uniform")}
    variants["plain"] = {"layer_attention": None}
    suite = Suite(**{"name": "s", "variants": variants, "recipe": {},
                     "primary": (("mrla-light", "depthwise"),), **changes})
    values = {"plain": (0.90, 0.91, 0.92, 0.905, 0.911, 0.903, 0.907, 0.912),
              "mrla-light": (0.915, 0.93, 0.925, 0.92, 0.914, 0.915, 0.93, 0.913),
              "depthwise": (0.91, 0.915, 0.93, 0.912, 0.906, 0.917, 0.92, 0.908),
              "uniform": (0.90, 0.912, 0.917, 0.901, 0.913, 0.906, 0.901, 0.919)}
    records = [record(name, seed, value) for name, row in values.items() for seed, value in enumerate(row)]
    return suite, values, records


def measured_records(means, seeds=8, source="cifar10", **changes):
    """Records of suite "s" with both losses and the accuracy, none of them of a run that was ever made.

    means: variant -> (training loss of the first epoch, accuracy). The seeds scatter by hundredths around
    these; the test loss is 1 - accuracy.
    """
    records = []
    for row, (variant, (loss, accuracy)) in enumerate(means.items()):
        for seed in range(seeds):
            wobble = 0.01 * ((3 * seed + 5 * row * seed) % 7 - 3)
            metrics = [{"epoch": 1, "train_loss": loss + wobble},
                       {"epoch": 2, "train_loss": 0.1, "test_loss": 1 - accuracy - wobble}]
            records.append(record(variant, seed, accuracy + wobble, metrics=metrics, source=source,
                                  **changes))
    return records


NETS = Suite("tiny", {name: {"layer_attention": None if name == "plain" else name}
                      for name in ("plain", "mrla-base", "mrla-light", "depthwise")},
             {"depth": 14, "width": 4, "batch_size": 16, "steps": 6, "device": "cpu", "source": "synthetic"},
             seeds=(0, 1), note="a test")


def run_nets(variants=tuple(NETS.variants), seeds=(0,)):
    """The records of NETS, of which two choose, in data/ and runs/ of the working directory."""
    return run_suite(NETS, Path("data/results/tiny.jsonl"), variants=variants, seeds=seeds, data=tiny_cifar(),
                     progress=False)


def export_nets(records):
    """The new lines of the index of checkpoints that these records give."""
    return export_checkpoints(NETS, records, "runs", Path("data/checkpoints"),
                              Path("data/results/checkpoints.jsonl"), data=tiny_cifar())
