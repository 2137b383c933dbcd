"""Recipes that each seed draws: the same for all variants of a seed, the same on every machine."""

import dataclasses
import json
import math

import pytest
import torch
from tiny import tiny_cifar
from tiny_suites import RECIPE, run_tiny, tiny_suite
from torch.nn import functional as F

from mrla_minimal.lab.data import plan_epoch, take_batch
from mrla_minimal.lab.engine import build_model, build_optimizer, learning_rate_at
from mrla_minimal.lab.evidence import SUITES, LogUniform, report, summarise
from mrla_minimal.lab.evidence.jobs import check_definitions, final_jobs, run_folder

DRAWS = {"learning_rate": LogUniform(0.01, 0.1), "weight_decay": LogUniform(1e-4, 1e-3)}


@pytest.mark.parametrize("low, high, message", [
    (0, 1, "low must be a positive number"), (1, "2", "high must be a positive number"),
    (0.3, 0.05, "low must be below high, not 0.3 and 0.05"), (1, 1, "low must be below high"),
    (0.1, math.inf, "high must be a positive number"),
])
def test_a_wrong_range_is_refused(low, high, message):
    with pytest.raises(ValueError, match=message):
        LogUniform(low, high)


def test_what_a_seed_draws_is_written_in_stone():
    """The numbers are part of the ids of records: whatever draws others makes other runs."""
    suite = SUITES["first-epoch-thin56"]
    assert suite.drawn(0) == {"learning_rate": 0.277, "weight_decay": 0.000179}
    assert suite.drawn(19) == {"learning_rate": 0.0545, "weight_decay": 0.000357}
    alone = tiny_suite(name=suite.name, draws={"weight_decay": suite.draws["weight_decay"]})
    assert alone.drawn(0) == {"weight_decay": 0.000179}     # whatever else is drawn
    assert tiny_suite(draws=suite.draws).drawn(0) != suite.drawn(0)


def test_draws_are_log_uniform_and_have_three_digits():
    drawn = [LogUniform(0.05, 0.3).draw("s", seed) for seed in range(2000)]
    assert all(0.05 <= number <= 0.3 and number == float(f"{number:.3g}") for number in drawn)
    shares = sorted(math.log(number / 0.05) / math.log(6) for number in drawn)
    assert max(abs(share - i / 2000) for i, share in enumerate(shares)) < 0.036      # Kolmogorov, 1 %


def test_nothing_is_drawn_outside_the_range():
    narrow = LogUniform(0.12345, 0.12346)
    assert {narrow.draw(seed) for seed in range(20)} == {0.12345}
    assert {LogUniform(0.12354, 0.12355).draw(seed) for seed in range(20)} == {0.12355}


def test_a_seeds_variants_share_what_it_draws_and_seeds_differ():
    suite = tiny_suite(draws=DRAWS)
    jobs = final_jobs(suite, tuple(suite.variants), suite.seeds, None)
    drawn = [(job.config.learning_rate, job.config.weight_decay) for job in jobs]
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
    assert drawn[0] == tuple(suite.drawn(0).values())
    assert suite.config("plain", 0, learning_rate=0.05).learning_rate == 0.05      # a rehearsal's change
    recipe = suite.recipe_of(dataclasses.asdict(jobs[0].config))
    assert recipe == {name: value for name, value in RECIPE.items() if name != "device"}   # nothing drawn


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(suite, its records, its folder): two variants, two seeds, run on the tiny images for a whole epoch."""
    folder = tmp_path_factory.mktemp("drawn")
    suite = tiny_suite(draws=DRAWS, recipe={**RECIPE, "steps": None, "epochs": 1, "channels_last": False},
                       measure="first_epoch_loss")
    return suite, run_tiny(folder, suite), folder


def test_drawn_recipes_are_recorded_found_again_and_summarised(ran):
    suite, records, folder = ran
    assert {record["learning_rate"] for record in records} == {suite.drawn(seed)["learning_rate"]
                                                               for seed in suite.seeds}
    assert {record["config"]["weight_decay"] for record in records if record["seed"] == 1} == {
        suite.drawn(1)["weight_decay"]}
    assert all(run_folder(suite, record, folder / "runs").is_dir() for record in records)
    assert run_tiny(folder, suite) == records       # nothing is run again
    summary = summarise(records, suite)
    assert summary.rates == {} and set(summary.accuracies) == {"plain", "mrla-light"}
    assert all(line.split()[-1] == "drawn" for line in report(summary).splitlines()
               if line.startswith("mrla-light ") and " - " not in line)
    assert json.loads(json.dumps(dataclasses.asdict(suite)))["draws"]["weight_decay"] == {
        "low": 1e-4, "high": 1e-3}


@pytest.mark.parametrize("field", list(DRAWS))
def test_runs_of_one_seed_with_different_drawn_values_are_not_compared(ran, field):
    suite, records, _ = ran
    changed = [{**record, "config": {**record["config"], field: 0.02}}
               if (record["variant"], record["seed"]) == ("mrla-light", 1) else record for record in records]
    with pytest.raises(ValueError, match=f"tiny, seed 1: plain was run with {field}.*mrla-light with 0.02"):
        summarise(changed, suite)


@pytest.mark.parametrize("field", list(DRAWS))
def test_records_of_another_range_are_told_before_a_run(ran, field):
    suite, records, _ = ran
    check_definitions(suite, tuple(suite.variants), records, {})
    other = dataclasses.replace(suite, draws={**DRAWS, field: LogUniform(0.2, 0.3)})
    with pytest.raises(ValueError, match=f"was recorded with {field}"):
        check_definitions(other, tuple(suite.variants), records, {})


def test_the_first_epochs_loss_is_of_all_its_steps_and_of_images_before_they_are_learned_from(ran):
    """`first_epoch_loss` is asked of metrics[0]["train_loss"]. 96 images in batches of 16: six steps."""
    suite, records, _ = ran
    config, data = suite.config("plain", 0), tiny_cifar()
    model = build_model(config, 10).train()
    optimizer = build_optimizer(config, model)
    plan, losses = plan_epoch(96, 0, 0, augment=False), []
    for step in range(6):
        images, labels = take_batch(data.train, plan, 16 * step, 16 * step + 16)
        losses.append(F.cross_entropy(model(images), labels))       # before the step that learns from them
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step, 6, 6)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    (record,) = (r for r in records if (r["variant"], r["seed"]) == ("plain", 0))
    assert record["metrics"][0]["epoch"] == 1 and record["metrics"][0]["step"] == 6
    assert record["metrics"][0]["train_loss"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
