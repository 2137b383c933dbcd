"""Interventions on detectors: each as worked by hand, their errors, and how a suite records them."""

import copy
import json
import statistics
from pathlib import Path

import pytest
import torch
from test_detector_suites import FOUND
from tiny_scenes import detection_config, tiny_cells, tiny_scenes

from mrla_minimal import Detector, record_attention
from mrla_minimal.lab.data.scenes import views
from mrla_minimal.lab.device import World
from mrla_minimal.lab.engine.detection import DetectionRun, find_objects
from mrla_minimal.lab.evidence import intervention_means, merge_records, report_interventions, run_suite
from mrla_minimal.lab.evidence.detector_interventions import (
    MEAN_BATCHES,
    intervene_on_detector,
    last_crops,
)
from mrla_minimal.lab.evidence.image_noise import drawn_fields
from mrla_minimal.lab.evidence.records import load_interventions
from mrla_minimal.lab.fields import by_class, mean_precision
from mrla_minimal.lab.precision import average_precision


@pytest.fixture(scope="module", params=["mrla-base", "mrla-light"])
def looked_into(request):
    """(the trained net, its run, what `intervene_on_detector` finds); its queries are made strong."""
    config = detection_config(depth=14, steps=60, layer_attention=request.param, warmup_epochs=0.0)
    run = DetectionRun(config, World(0, 1, torch.device("cpu")), data=tiny_scenes())
    while not run.finished:
        run.train_step()
    model = run.model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("query.weight"):
                parameter.mul_(5)
    return model, run, intervene_on_detector(model, tiny_scenes(), config)


def hooked(model, replace):
    """Replace each layer's weights by replace(stage, layer, weights); returns the hooks."""
    return [block.layer_attention.weights.register_forward_hook(
                lambda module, given, weights, s=s, t=t: replace(s, t, weights))
            for s, stage in enumerate(model.stages) for t, block in enumerate(stage)]


def reached(model, replace=lambda s, t, weights: weights):
    hooks = hooked(model, replace)
    try:
        found = find_objects(model, list(views(tiny_scenes().test, 32)))
    finally:
        for hook in hooks:
            hook.remove()
    return {f"{what}_AP": average_precision(images)["AP"] for what, images in found.items()}


def constants(model, crops, how):
    """What every image's weights are replaced by: [stage][layer]."""
    with torch.no_grad(), record_attention(model) as weights:
        model(torch.cat(crops[-MEAN_BATCHES:]))
    means = [[layer.mean(dim=0, keepdim=True) for layer in stage] for stage in weights]
    if how == "mean":
        return means
    is_gate = getattr(model.stages[0][0].layer_attention, "is_gate", False)
    return [[layer.mean().expand_as(layer) if is_gate else torch.full_like(layer, 1 / layer.shape[-1])
             for layer in stage] for stage in means]


def held_at(fixed):
    """What replaces each layer's weights by constants."""
    return lambda s, t, weights: fixed[s][t].expand_as(weights)


def test_each_net_reaches_what_it_does_by_hand(looked_into):
    model, run, found = looked_into
    crops = last_crops(run.config, tiny_scenes())
    assert found["learned"] == pytest.approx(reached(model)) and found["learned"]["box_AP"] > 0.1
    for how in ("mean", "uniform"):
        assert found[how] == pytest.approx(reached(model, held_at(constants(model, crops, how))))
    assert len({found[how]["mask_AP"] for how in ("learned", "mean", "shuffle")}) == 3
    assert (found["images"], found["fields"]) == (32, 4)


def test_with_norms_refitted_too(looked_into):
    model, run, found = looked_into
    crops = last_crops(run.config, tiny_scenes())
    for how in ("learned", "mean"):
        replace = held_at(constants(model, crops, how)) if how == "mean" else lambda s, t, weights: weights
        again = copy.deepcopy(model)
        norms = [module for module in again.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for module in again.train().modules():
            if type(module).__name__ == "DropPath":
                module.eval()
        hooks = hooked(again, replace)
        with torch.no_grad():
            for images in crops:
                again(images)
        for hook in hooks:
            hook.remove()
        assert found["refitted"][how] == pytest.approx(reached(again.eval(), replace), abs=1e-6)


def test_the_crops_are_those_of_the_last_steps(looked_into):
    _, run, _ = looked_into
    crops = last_crops(run.config, tiny_scenes(), count=3)
    for step, images in zip((57, 58, 59), crops, strict=True):
        run.step = step
        assert torch.equal(run.batch()[0], images)
    assert len(last_crops(detection_config(steps=2), tiny_scenes())) == 2


def test_an_error_is_that_of_a_paired_draw_of_fields(looked_into):
    model, run, found = looked_into
    seen = list(views(tiny_scenes().test, 32))
    fields = [view.field for view in seen]
    mean = held_at(constants(model, last_crops(run.config, tiny_scenes()), "mean"))
    kept = []
    for replace in (lambda s, t, weights: weights, mean):
        hooks = hooked(model, replace)
        kept.append(by_class(find_objects(model, seen)["mask"], fields))
        for hook in hooks:
            hook.remove()
    changes = [mean_precision(kept[1], counts) - mean_precision(kept[0], counts)
               for counts in drawn_fields(kept[0][0].truths, 200)]
    assert len(changes) == 200 and len(set(changes)) > 5
    assert found["errors"]["mean"]["mask_AP"] == pytest.approx(statistics.stdev(changes))
    assert set(found["errors"]) == {"mean", "shuffle", "uniform"}
    assert set(found["refitted"]["errors"]) == {"learned", "mean", "shuffle", "uniform"}


def test_several_classes_count_alike_and_one_that_is_not_drawn_does_not_count():
    torch.manual_seed(0)
    cells = tiny_cells()
    model = Detector(8, width=8, num_classes=3, masks=False).eval()
    seen = list(views(cells.test, 32))
    found = find_objects(model, seen)["box"]
    kept = by_class(found, [view.field for view in seen])
    assert len(kept) == 2                                       # of three, one is never there
    assert mean_precision(kept) == pytest.approx(average_precision(found)["AP"])
    only = (kept[0].truths > 0) & (kept[1].truths == 0)
    if only.any():
        assert mean_precision(kept, only * 1.0) == kept[0].average_precision(only * 1.0)["AP"]


def test_a_detector_that_chooses_nothing_has_none():
    for name in (None, "depthwise", "uniform"):
        assert intervene_on_detector(Detector(8, width=8, layer_attention=name), tiny_scenes(),
                                     detection_config()) is None


def test_a_suite_records_them_beside_its_records_and_a_table_shows_them(tmp_path):
    for _ in range(2):          # the second time nothing is left to do
        run_suite(FOUND, tmp_path / "records.jsonl", runs=tmp_path / "runs", data=tiny_scenes(),
                  progress=False)
        record, = load_interventions(tmp_path / "records-interventions.jsonl")
    assert (record["variant"], record["weights"], record["fingerprint"]) == ("mrla-light", "float32",
                                                                             "discs, version 1")
    shown = {**record, "learned": {"box_AP": 0.5, "mask_AP": 0.6},
             "shuffle": {"box_AP": 0.48, "mask_AP": 0.55},
             "errors": {how: {"box_AP": 0.004, "mask_AP": 0.003} for how in ("mean", "shuffle", "uniform")}}
    lines = report_interventions([shown]).splitlines()
    heads = [line for line in lines if line.startswith("what the attention chooses")]
    assert [head.split(": ")[1].split(" as learned")[0] for head in heads] == [
        "mask AP on test", "box AP on test"]
    masks, boxes = (line.split() for line in lines if line.startswith("mrla-light  "))
    assert masks[2] == "60.00" and masks[5:7] == ["-5.00", "(0.30)"]
    assert boxes[2] == "50.00" and boxes[5:7] == ["-2.00", "(0.40)"]
    assert "the test fields of view. " in " ".join(lines)
    assert "the test images. " in report_interventions([shown | {"fields": shown["images"]}])
    means = {(row.measure, row.intervention, row.norms_refitted): row.mean
             for row in intervention_means([shown])}
    assert means["mask_AP", "shuffle", False] == pytest.approx(-0.05) and len(means) == 14


def test_records_that_are_damaged(tmp_path):
    run_suite(FOUND, tmp_path / "records.jsonl", variants=["mrla-light"], runs=tmp_path / "runs",
              data=tiny_scenes(), progress=False)
    path = tmp_path / "records-interventions.jsonl"
    whole = json.loads(path.read_text())
    for changes, words in (
            ({"learned": 0.5}, "learned must be a table"),
            ({"mean": {"box_AP": 1.5}}, "mean: box_AP must be"),
            ({"errors": {}}, "errors: lacks mean, shuffle, uniform"),
            ({"refitted": {}}, "refitted: lacks learned")):
        path.write_text(json.dumps(whole | changes) + "\n")
        with pytest.raises(ValueError, match=words):
            load_interventions(path)
    other = Path(tmp_path / "other-interventions.jsonl")
    lines = whole, whole | {"errors": dict.fromkeys(whole["errors"], {"box_AP": 0.5, "mask_AP": 0.5})}
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="differs from the one of the same id"):
        merge_records([other], tmp_path / "all-interventions.jsonl")
