"""The figures that several notebooks share: what they show follows what they are given."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mrla_minimal.course import plots
from mrla_minimal.lab.evidence import SUITES, summarise


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_quiz_bars_say_solved_where_the_quiz_is_solved():
    figure = plots.quiz_bars({"late": {"last": 0.12, "base": 1.0, "light": 0.7}, "early": {"light": 0.99}})
    late, early = figure.axes
    assert [bar.get_width() for bar in late.patches] == [0.12, 1.0, 0.7]
    assert texts(late) == ["not solved", "solved", "between"] and texts(early) == ["solved"]
    names = [label.get_text() for label in late.get_yticklabels()]
    assert names == ["last alone", "MRLA-base (Eq. 6)", "MRLA-light (Eq. 8)"]
    assert late.get_title() == "late"


def test_the_quiz_in_one_picture_shows_bars_and_weights():
    bars, weights, _ = plots.quiz_picture({"last": 0.12, "base": 1.0}, [[0.9, 0.1], [0.2, 0.8]]).axes
    assert [bar.get_width() for bar in bars.patches] == [0.12, 1.0]
    assert texts(bars) == ["not solved", "solved"]
    np.testing.assert_allclose(weights.images[0].get_array(), [[0.9, 0.1], [0.2, 0.8]])


def test_attention_map_marks_what_is_not_read():
    axis = plots.attention_map([[1.0], [0.25, 0.75]], show_numbers=True)
    image = axis.images[0].get_array()
    np.testing.assert_allclose(image.filled(np.nan), [[1.0, np.nan], [0.25, 0.75]])
    assert texts(axis) == ["1.00", "\u00d7", "0.25", "0.75"]
    assert "" == "".join(texts(plots.attention_map([[0.5, 0.5]])))


def test_the_four_memories_grow_as_they_should():
    figure = plots.draw_four_memories(layers=5)
    counts = [sum(text.get_text().startswith("$") for text in axis.texts) for axis in figure.axes]
    # 1 + .. + 5 maps; a key and a value for each of them; one state a layer; one map a layer, twice
    assert counts == [15, 30, 5, 5, 5, 0]


def test_the_style_is_that_of_every_figure_after_it():
    with plt.rc_context():
        plots.use_style()
        figure, axis = plt.subplots()
        label = axis.set_xlabel("layers")
        assert (figure.dpi, label.get_size(), axis.title.get_size()) == (110, 12, 12)


def test_each_quiz_method_looks_like_its_kin_and_like_no_other():
    methods = ["last", "mean", "residual", "layer", "base", "light", "state"]
    for table in (plots.COLOURS, plots.MARKERS, plots.LABELS):
        assert len({table[method] for method in methods}) == len(methods)
    assert plots.COLOURS["base"] == plots.COLOURS["mrla-base"]
    assert plots.MARKERS["light"] == plots.MARKERS["mrla-light"]


def summary_of(light, plain=(0.90, 0.902, 0.899), note="", source="cifar10"):
    """A Summary of made-up runs: seed i of MRLA-light has accuracy light[i]."""
    suite = SUITES["smoke"]
    records = []
    for variant, accuracies in (("plain", plain), ("mrla-light", light)):
        for seed, accuracy in enumerate(accuracies):
            config = dataclasses.asdict(suite.config(variant, seed))
            records.append({
                "suite": "smoke", "variant": variant, "seed": seed, "phase": "final",
                "test_accuracy": accuracy, "recipe": {}, "source": source, "fingerprint": "",
                "learning_rate": 0.1, "config": config,
            })
    return summarise(records, dataclasses.replace(suite, note=note))


def test_contrasts_show_each_seeds_difference_and_the_interval():
    summary = summary_of((0.905, 0.903, 0.907), note="made up")
    (row,) = summary.contrasts
    row = dataclasses.replace(row, interval=(-0.009, 0.011))
    summary = dataclasses.replace(summary, contrasts=[row])
    (axis,) = plots.plot_contrasts(summary).axes
    np.testing.assert_allclose(axis.collections[0].get_offsets()[:, 0], [0.5, 0.1, 0.8])
    lines = [line for line in axis.lines if len(line.get_xdata()) == 2]
    drawn = {line.get_linewidth(): list(line.get_xdata()) for line in lines}
    np.testing.assert_allclose(drawn[3.5], [-0.9, 1.1])
    np.testing.assert_allclose(drawn[1.5], [100 * row.mean] * 2)
    assert axis.get_title() == "smoke \u00b7 ResNet-8 \u00b7 made up"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["MRLA-light \u2212 plain"]
    assert axis.patches[0].get_x() == -0.3 and axis.patches[0].get_width() == pytest.approx(0.6)


def test_an_interval_that_leaves_the_figure_ends_in_an_arrow():
    def arrows(light):
        (axis,) = plots.plot_contrasts(summary_of(light)).axes
        return [line.get_marker() for line in axis.lines if line.get_marker() in "<>"]

    assert arrows((0.905, 0.907, 0.9045)) == []
    # Two seeds: 9 standard deviations to each side.
    assert arrows((0.905, 0.920)) == ["<", ">"]


def test_contrasts_of_one_seed_are_symbols_alone():
    (axis,) = plots.plot_contrasts(summary_of((0.91,), plain=(0.90,), source="synthetic")).axes
    np.testing.assert_allclose(axis.collections[0].get_offsets()[:, 0], [1.0])
    assert len(axis.lines) == 1     # zero
    assert "synthetic" in axis.get_xlabel()


def test_contrasts_reach_a_marked_difference():
    (axis,) = plots.plot_contrasts(summary_of((0.91,), plain=(0.90,)), marks=[-7, 5]).axes
    assert [line.get_xdata()[0] for line in axis.lines] == [0, -7, 5]
    low, high = axis.get_xlim()
    assert low < -7 and high > 5


def test_contrasts_can_be_written_to_a_file(tmp_path):
    assert plots.plot_contrasts(summary_of((0.91, 0.92, 0.93)), tmp_path / "contrasts.png") is None
    assert (tmp_path / "contrasts.png").read_bytes().startswith(b"\x89PNG")
    lone_variant = summary_of((), plain=(0.9,))
    assert plots.plot_contrasts(lone_variant).axes      # no contrasts, and no error
