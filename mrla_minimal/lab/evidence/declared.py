"""The suites of this course, each written down before its first run."""

from collections.abc import Iterable

from mrla_minimal.lab.engine.presets import PRESETS
from mrla_minimal.lab.evidence.designs import Effect, LogUniform
from mrla_minimal.lab.evidence.suites import Suite


def by_name(suites: Iterable[Suite]) -> dict[str, Suite]:
    """name -> suite. ValueError for two suites of one name: their records would mix."""
    table = {}
    for suite in suites:
        if suite.name in table:
            raise ValueError(f"two suites are called {suite.name}: give one of them another name")
        table[suite.name] = suite
    return table


def _attentions(*names: str, **more: dict) -> dict[str, dict]:
    """Variants that differ in their layer attention alone; "plain" has none."""
    return {name: {"layer_attention": None if name == "plain" else name} for name in names} | more


_LONG = {"source": "real", "epochs": 60, "warmup_epochs": 3.0, "batch_size": 128}
_ONE_CYCLE = {"source": "real", "epochs": 4, "warmup_epochs": 0.8, "batch_size": 128}
_MRLA_AGAINST_CONTROLS = (("mrla-light", "depthwise"), ("mrla-base", "uniform"))
# Two steps from depthwise to Eq. 8, each taken with and without the other.
_TWO_BY_TWO = (
    Effect("memory", ("depthwise-carry", "mrla-light"), ("depthwise", "depthwise-gated")),
    Effect("gate", ("depthwise-gated", "mrla-light"), ("depthwise", "depthwise-carry")),
    Effect("memory x gate", ("mrla-light", "depthwise"), ("depthwise-carry", "depthwise-gated"),
           primary=False, summed=True),
)
# Peak rates about the pilot's best (0.2, at the border of those tried), weight decay about the usual 5e-4.
_DRAWS = {"learning_rate": LogUniform(0.05, 0.3), "weight_decay": LogUniform(1e-4, 1e-3)}
# The trunk has three quarters of the schedule; the branches go on while the rate falls to zero.
_BRANCHES = {"depth": 56, "width": 8, "resolution": 16, "epochs": 8, "trunk_epochs": 6, "warmup_epochs": 0.8,
             "batch_size": 128, "augment": "on", "source": "real"}
_REORDERED = {"order": 1000}    # no suite has that many seeds: an order that no other run sees
_RATES = (0.05, 0.1, 0.2)
CORRIDORS = {f"corridor-width{width}": width for width in (4, 8, 16)}     # channels of a layer
SUITES = by_name((
    Suite(
        "cifar10-thin56",
        _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base", "depthwise-gated",
                    "depthwise-carry", "mrla-light-released"),
        {"depth": 56, "width": 8, **_LONG}, primary=_MRLA_AGAINST_CONTROLS,
        contrasts=(("mrla-light", "depthwise-gated"), ("mrla-light", "depthwise-carry"),
                   ("depthwise-gated", "depthwise"), ("depthwise-carry", "depthwise"),
                   ("mrla-light", "mrla-light-released"), ("mrla-base", "depthwise")),
        rates=_RATES,
        about="does layer attention help, and which part of it: ResNet-56 of width 8, 60 epochs"),
    Suite(
        "cifar10-resnet20",
        {**_attentions("plain", "depthwise", "layer", "uniform", "mrla-base", "mrla-light",
                       "mrla-light-released"),
         "se": {"layer_attention": None, "channel_attention": "se"},
         "eca": {"layer_attention": None, "channel_attention": "eca"}},
        {"depth": 20, "width": 16, **_LONG},
        contrasts=(*_MRLA_AGAINST_CONTROLS, ("mrla-base", "depthwise"), ("layer", "mrla-base"),
                   ("mrla-light", "mrla-light-released")),
        rates=_RATES, about="the same in ResNet-20 of width 16, with Eq. 4, SE and ECA beside"),
    Suite(
        "cifar10-bottleneck56", _attentions("plain", "depthwise", "mrla-base", "mrla-light"),
        {"depth": 56, "block": "bottleneck", **_LONG},
        contrasts=(("mrla-light", "depthwise"), ("mrla-base", "depthwise")),
        rates=_RATES, about="the same in ResNet-56 with bottleneck blocks"),
    Suite(
        "cifar10-lambda", _attentions("plain", "mrla-light", "mrla-light-lambda0", "mrla-light-lambda1"),
        {"depth": 56, "width": 8, **_LONG},
        contrasts=(("mrla-light", "mrla-light-lambda0"), ("mrla-light", "mrla-light-lambda1")),
        rates=_RATES, about="does it matter where light's lambda starts: at random, at 0, at 1"),
    *(Suite(f"cifar10-depth{depth}-width{width}",
            _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base"),
            {"depth": depth, "width": width, **_LONG}, contrasts=_MRLA_AGAINST_CONTROLS,
            rates=_RATES,
            about=f"ResNet-{depth} of width {width}: with the first two, a grid of depth and width")
      for depth, width in ((20, 8), (56, 16))),
    # Declared when its "mrla-light" still meant the released wiring: the primary contrast is that one's.
    Suite(
        "cifar10-thin56-cpu",
        _attentions("plain", "uniform", "mrla-base", "depthwise", "mrla-light-released", "mrla-light"),
        {"depth": 56, "width": 8, **_ONE_CYCLE}, seeds=(0, 1, 2),
        primary=(("mrla-light-released", "depthwise"), ("mrla-base", "uniform")),
        rates=_RATES, tuned_on="plain", note="CPU pilot",
        about="the first suite with four epochs and three seeds, run on a CPU: its records are committed"),
    # At 8 and 16 channels base - uniform was declared when three seeds had been seen.
    *(Suite(
        name,
        _attentions("depthwise", "depthwise-carry", "mrla-light", "uniform", "mrla-base"),
        {"model": "corridor", "width": width, "steps": 500, "batch_size": 128, "source": "real",
         "optimizer": "adamw", "learning_rate": 0.01}, seeds=tuple(range(10)),
        primary=(("mrla-base", "uniform"),) if width == 4 else (),
        contrasts=(("mrla-base", "uniform"), ("mrla-light", "depthwise-carry")),
        baseline="depthwise", note="positive control",
        about=f"is choice found where it must help: the CIFAR corridor with layers of {width} channels")
      for name, width in CORRIDORS.items()),
    *(Suite(
        f"amnesia-{100 * wipe:02.0f}",
        _attentions("depthwise", "mrla-light-released", "mrla-light", "depthwise-carry", "uniform",
                    "mrla-base"),
        {"depth": 26, "width": 8, "resolution": 16, "wipe": wipe, "epochs": 2, "warmup_epochs": 0.4,
         "batch_size": 128, "source": "real"}, seeds=tuple(range(5)),
        primary=(("uniform", "depthwise"), ("mrla-light", "depthwise"), ("mrla-light-released", "depthwise"))
        if wipe == 0.15 else (), contrasts=(("mrla-base", "uniform"), ("mrla-light", "depthwise-carry")),
        baseline="depthwise", note="positive control",
        about=f"is memory found where it must help: {wipe:.0%} of the streams wiped between blocks")
      for wipe in (0.0, 0.05, 0.15)),
    # augment stays "auto", which is off where each image is seen once: nothing is there to be memorised, and
    # what a net is asked about an image before it has learned from it is the image itself.
    # margin: a point of accuracy was worth 0.027 nat in the pilot, and run-to-run scatter was 0.030.
    Suite(
        "first-epoch-thin56",
        _attentions("depthwise", "depthwise-gated", "depthwise-carry", "mrla-light", "depthwise-relu",
                    "uniform", "mrla-base", "base-zero-query"),
        {"depth": 56, "width": 8, "resolution": 16, "epochs": 1, "batch_size": 128, "source": "real"},
        seeds=tuple(range(20)), primary=(("mrla-base", "uniform"), ("uniform", "depthwise-relu")),
        effects=_TWO_BY_TWO, contrasts=(("base-zero-query", "uniform"), ("base-zero-query", "mrla-base")),
        baseline="depthwise", measure="first_epoch_loss", margin=0.03,
        draws=_DRAWS,
        about="who learns faster: the training loss of a first epoch at 16 pixels, over many recipes"),
    # The same question of the family. The clean steps: a reader's content added (mudd starts as denseformer
    # does, base as attnres, about the mean), a key of the writer's added to the mean, a unit that rewrites.
    Suite(
        "first-epoch-family",
        _attentions("depthwise-relu", "uniform", "denseformer", "mudd", "attnres", "mrla-base", "kcla",
                    "mrla-light", "dla-light"),
        {"depth": 56, "width": 8, "resolution": 16, "epochs": 1, "batch_size": 128, "source": "real"},
        seeds=tuple(range(20)), primary=(("attnres", "uniform"), ("dla-light", "mrla-light")),
        effects=(Effect("reader", ("mudd", "mrla-base"), ("denseformer", "attnres")),),
        contrasts=(("mudd", "denseformer"), ("mrla-base", "attnres"), ("mrla-base", "uniform"),
                   ("kcla", "uniform")),
        baseline="depthwise-relu", measure="first_epoch_loss", margin=0.03, draws=_DRAWS,
        about="who of the family learns faster: the training loss of a first epoch at 16 pixels"),
    # Each starts with its trunk's outputs (engine/branch.py). The reordered ones are the noise: what another
    # order of the last images does to the same net.
    Suite(
        "branch-choice",
        _attentions("uniform", "base-zero-query",
                    **{"uniform-reordered": {"layer_attention": "uniform", **_REORDERED}}),
        {**_BRANCHES, "trunk": "uniform"}, seeds=tuple(range(12)),
        primary=(("base-zero-query", "uniform"),), baseline="uniform", margin=0.3, draws=_DRAWS,
        about="what is choosing layers worth to a trained net: two of eight epochs, from one trunk a seed"),
    Suite(
        "branch-memory",
        _attentions("depthwise", "depthwise-carry-lambda0", "light-zero-query",
                    **{"depthwise-reordered": {"layer_attention": "depthwise", **_REORDERED}}),
        {**_BRANCHES, "trunk": "depthwise"}, seeds=tuple(range(12)),
        primary=(("depthwise-carry-lambda0", "depthwise"), ("light-zero-query", "depthwise-carry-lambda0")),
        baseline="depthwise", margin=0.3, draws=_DRAWS,
        about="what is a memory worth to a trained net, and then a gate: branches as in the suite before"),
    Suite(
        "scratch-thin38", _attentions("depthwise", "mrla-light", "uniform", "mrla-base"),
        {"depth": 38, "width": 8, "resolution": 16, "epochs": 8, "warmup_epochs": 0.8, "batch_size": 128,
         "source": "real"}, seeds=tuple(range(24)),
        primary=(("mrla-base", "uniform"), ("mrla-light", "depthwise")), baseline="depthwise", margin=0.5,
        draws=_DRAWS, about="does it help from the start: ResNet-38 at 16 pixels, eight epochs"),
    # Twice the batch of the others, and twice their lowest rates; 0.4 is the pilot's best, doubled.
    Suite(
        "scratch-gpu", _attentions("depthwise", "mrla-light", "uniform", "mrla-base"),
        {"depth": 56, "width": 8, "epochs": 10, "warmup_epochs": 1.0, "batch_size": 256, "source": "real"},
        seeds=tuple(range(40)), primary=(("mrla-base", "uniform"), ("mrla-light", "depthwise")),
        baseline="depthwise", margin=0.5,
        draws={"learning_rate": LogUniform(0.1, 0.4), "weight_decay": LogUniform(1e-4, 1e-3)},
        about="the same on a GPU: ResNet-56 at 32 pixels, ten epochs, stopped by the clock"),
    # A transformer's blocks are one stage of twelve layers. Sixteen tokens: 16 pixels in patches of 4. One
    # epoch, so the question is that of first-epoch-thin56, and its margin.
    Suite(
        "cifar10-vit-cpu",
        _attentions("plain", "depthwise", "mrla-light", "uniform", "mrla-base",
                    **{"mrla-base-emptied": {"layer_attention": "mrla-base", "reset_every": 4}}),
        {"model": "vit", "depth": 12, "dim": 64, "heads": 2, "resolution": 16, "epochs": 1,
         "warmup_epochs": 0.1, "batch_size": 64, "optimizer": "adamw", "source": "real"},
        seeds=tuple(range(12)), primary=(("mrla-base", "uniform"), ("mrla-light", "depthwise")),
        contrasts=(("mrla-base-emptied", "mrla-base"), ("mrla-base-emptied", "uniform")),
        measure="first_epoch_loss", margin=0.03,
        draws={"learning_rate": LogUniform(5e-4, 2e-3), "weight_decay": LogUniform(0.01, 0.1)},
        about="does it help where all layers are one stage: a transformer's first epoch, over many recipes"),
    # Boxes and masks: the presets are the recipes, but for the attention. margin: a third of the least gain
    # that the paper claims on COCO.
    Suite(
        "nuclei-cpu",
        _attentions("plain", "depthwise", "mrla-light", "mrla-light-released", "uniform", "mrla-base"),
        {**PRESETS["nuclei"], "source": "real"}, seeds=tuple(range(9)), primary=_MRLA_AGAINST_CONTROLS,
        measure="mask_AP", margin=1.0,
        about="does it help to find nuclei: boxes and masks in microscope images, 480 steps"),
    # Declared with plain and light. The control and base, the best on nuclei, were added when runs of those
    # two had begun, and before any of their own.
    Suite(
        "blood-cpu", _attentions("plain", "depthwise", "mrla-light", "mrla-base"),
        {**PRESETS["blood"], "source": "real"}, seeds=tuple(range(9)), primary=(("mrla-light", "plain"),),
        contrasts=(("mrla-light", "depthwise"),), measure="box_AP", margin=1.0,
        about="the same with three classes and boxes alone: blood cells"),
    Suite(
        "smoke", _attentions("plain", "mrla-light"),
        {"depth": 8, "width": 8, "batch_size": 32, "steps": 4, "source": "synthetic"}, seeds=(0, 1),
        contrasts=(("mrla-light", "plain"),), note="a few steps, to see the engine run",
        about="a few steps on the built-in images, to see the engine run", committed=False),
))
