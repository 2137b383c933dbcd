"""All suites at once, as text, as JSON and as a figure."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_suites import diverged, four_variants, measured_records

from mrla_minimal.lab.evidence import Effect, report, summarise
from mrla_minimal.lab.evidence.overview import overview, overview_as_json, report_overview
from mrla_minimal.lab.evidence.tables import summaries
from mrla_minimal.lab.summary_figure import plot_overview

RESULTS = Path(__file__).parents[3] / "data" / "results"

MEANS = {"plain": (2.0, 0.5), "mrla-light": (1.5, 0.6), "depthwise": (1.9, 0.5), "uniform": (1.9, 0.5)}
EFFECT = Effect("memory", ("mrla-light", "depthwise"), ("uniform", "plain"))


def one(name, means=MEANS, seeds=8, source="cifar10", more=(), **changes):
    """The Summary of a suite of this name, of four variants."""
    suite, _, _ = four_variants(name=name, **changes)
    records = measured_records(means, seeds, source) + list(more)
    made = [{**record, "suite": name, "config": {**suite.recipe, **record["config"]}}
            for record in records if "config" in record]
    return summarise(made + [record for record in records if "config" not in record], suite)


@pytest.fixture
def found():
    return overview([
        one("first"), one("planted", note="positive control", recipe={"depth": 26}, margin=0.5),
        one("fast", measure="first_epoch_loss", margin=0.03, effects=(EFFECT,)),
        one("second", {**MEANS, "mrla-light": (1.5, 0.52)}, seeds=4,
            primary=(("depthwise", "mrla-light"),)),
        one("made up", source="synthetic"), one("short", seeds=2)])


def test_every_suite_stands_in_its_section_with_its_primary_contrasts_first(found):
    assert {finding.summary.suite for finding in found.planted} == {"planted"}
    assert {finding.summary.suite for finding in found.losses} == {"fast"}
    names = [(finding.summary.suite, finding.contrast.name) for finding in found.accuracies]
    assert names[:3] == [("first", "mrla-light - depthwise"), ("second", "depthwise - mrla-light"),
                         ("short", "mrla-light - depthwise")]
    assert not any(finding.contrast.primary for finding in found.accuracies[3:])


def test_only_accuracies_that_were_not_planted_are_taken_together(found):
    effect = found.together["mrla-light", "depthwise"]
    assert [(cell.suite, cell.n) for cell in effect.cells] == [("first", 8), ("second", 4)]
    # The second has it the other way round. Points, and the error of a mean of n differences:
    row, turned = (finding.contrast for finding in found.accuracies[:2])
    assert [cell.mean for cell in effect.cells] == pytest.approx([100 * row.mean, -100 * turned.mean])
    half = (row.interval[1] - row.interval[0]) / 2
    assert effect.cells[0].error == pytest.approx(100 * half / 2.3646, rel=1e-3)      # t, 7 degrees, 0.975
    # plain is in no primary contrast: it needs two suites, and has them.
    assert ("uniform", "plain") in found.together
    assert ("uniform", "plain") not in overview([one("first")]).together


def test_a_contrast_with_a_diverged_run_is_no_cell():
    gone = {**diverged("depthwise", 9), "suite": "first"}
    together = overview([one("first", more=[gone]), one("second")]).together
    assert [cell.suite for cell in together["mrla-light", "depthwise"].cells] == ["second"]


def test_what_choosing_gains_has_a_slope_over_the_corridors_widths():
    corridors = [summary for summary in summaries(RESULTS) if summary.suite.startswith("corridor-width")]
    row = next(finding.contrast for finding in overview(corridors).planted
               if finding.summary.suite == "all corridors")
    assert not row.primary and row.n == 3
    for seed, slope in row.differences.items():
        gains = [summary.accuracies["mrla-base"][seed] - summary.accuracies["uniform"][seed]
                 for summary in corridors]
        assert slope == pytest.approx(np.polyfit([2, 3, 4], gains, 1)[0])        # over log2 of 4, 8, 16
    mean, high, low = (f"{-100 * value:.1f}" for value in (row.mean, *row.interval))
    said = f"The lead falls by {mean} points with each doubling, on average (95 %: {low} to {high}; the three"
    assert said in " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
    (line,) = [line for line in report_overview(overview(corridors)).splitlines() if "doubled" in line]
    assert line.split()[3:9] == ["channels", "doubled", "all", "corridors", "3", f"{100 * row.mean:+.2f}"]
    assert "doubled" not in report_overview(overview(corridors[:1]))
    drawn = [label.get_text() for label in plot_overview(overview(corridors)).axes[0].get_yticklabels()]
    assert [" ".join(text.split()) for text in drawn] == [
        "MRLA-base \u2212 uniform mean", "MRLA-base \u2212 uniform mean, for each doubling of the channels"]


def test_the_text_has_every_contrast_and_the_chances(found):
    text = report_overview(found)
    assert text.count("mrla-light - depthwise *  ") == 4 and "memory *" in text
    assert "made up" not in text and " nat     a's loss is lower by more than 0.03 nat" in text
    short = report_overview(found, primary_only=True)
    assert "depthwise - plain  " in text and "depthwise - plain  " not in short.split("together")[0]
    assert short.count("mrla-light - depthwise *  ") == 4
    effect = found.together["mrla-light", "depthwise"]
    line = next(line for line in text.splitlines() if line.startswith("mrla-light - depthwise       ")
                and "suite" not in line and " points" not in line)
    assert line.split()[3:] == ["2", f"{effect.mean:+.2f}", f"{effect.interval[0]:+.2f}", "to",
                                f"{effect.interval[1]:+.2f}",
                                *(f"{chance:.2f}" for chance in (*effect.chances, *effect.new, effect.tau))]
    # What a suite's own table says, and what this one says of it, is one reading.
    assert all(finding.contrast.reading in report(finding.summary) for finding in found.losses)


def test_as_json_it_holds_what_the_text_does(found):
    plain = json.loads(json.dumps(overview_as_json(found)))
    assert plain["losses"][0]["measure"] == "first_epoch_loss" and plain["losses"][0]["primary"]
    assert plain["together"]["mrla-light - depthwise"]["cells"][1]["suite"] == "second"


def test_the_figure_has_a_panel_a_section_and_a_row_a_primary_contrast(found, tmp_path):
    figure = plot_overview(found)
    planted, losses, accuracies, together = figure.axes
    rows = [[label.get_text() for label in axis.get_yticklabels()] for axis in figure.axes]
    light, turned = "MRLA-light \u2212 depthwise", "depthwise \u2212 MRLA-light"
    assert rows[:3] == [[light], [light, "memory"], [light, turned, light]] and light in rows[3]
    notes = [[" ".join(text.get_text().split()) for text in axis.texts] for axis in figure.axes]
    names = [[each.summary.suite for each in section if each.contrast.primary]
             for section in (found.planted, found.accuracies)]
    assert notes[0] == [f"{name}: ResNet-26, n = 8" for name in names[0]]
    assert notes[2] == [f"{name}: ResNet-20, n = {n}" for name, n in zip(names[1], (8, 4, 2), strict=True)]
    assert notes[3][0] == "2 suites"
    assert "CIFAR-10: difference in mean training loss" in losses.get_xlabel()
    assert "nat; left is better" in losses.get_xlabel() and "points; right" in planted.get_xlabel()
    # Each suite's own margin; estimates from few seeds are hollow; together has the scale of accuracies.
    assert planted.patches[0].get_width() == pytest.approx(1.0)
    assert losses.patches[0].get_width() == pytest.approx(0.06)
    faces = [line.get_markerfacecolor() for line in accuracies.lines if line.get_marker() not in ("", "None")]
    assert [face == "white" for face in faces] == [False, True, True]
    assert [cell.n for cell in found.together["mrla-light", "depthwise"].cells] == [8, 4]
    assert "white" in [line.get_markerfacecolor() for line in together.lines]
    assert together.get_xlim() == accuracies.get_xlim()
    bar = accuracies.lines[1].get_xdata()
    assert list(bar) == pytest.approx([100 * end for end in found.accuracies[0].contrast.interval])
    every = plot_overview(found, every=True)
    assert [len(axis.get_yticks()) for axis in every.axes[:3]] == [
        len(section) for section in (found.planted, found.losses, found.accuracies)]
    assert len(found.accuracies) > len(rows[2])
    assert plot_overview(found, tmp_path / "all.png") is None
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")


def test_without_primary_contrasts_there_is_nothing_to_draw():
    bare = one("bare", primary=())
    with pytest.raises(ValueError, match="no suite with records has a primary contrast"):
        plot_overview(overview([bare]))
    assert "mrla-light - plain" in report_overview(overview([bare]))
