"""The tables of committed suites inside a Markdown file."""

import json

import pytest
from tiny_suites import four_variants

from mrla_minimal.lab import cli
from mrla_minimal.lab.evidence import (
    load_interventions,
    load_records,
    report,
    report_interventions,
    summarise,
)
from mrla_minimal.lab.evidence.declared import SUITES
from mrla_minimal.lab.evidence.overview import overview, report_overview
from mrla_minimal.lab.evidence.tables import summaries, tables, update_tables, with_tables
from mrla_minimal.lab.files import append_record

MARKER, TOGETHER = "<!-- mrla suite report s -->", "<!-- mrla suite summary -->"
OLD = f"# Ours\n\n{MARKER}\n```\nan old\n\ntable\n```\n\nText with a table of its own:\n\n```\n1 2\n```\n"


@pytest.fixture
def readme(repository, monkeypatch):
    """data/results/README.md of a repository with the records of a suite "s" beside it, interventions too."""
    suite, _, records = four_variants(about="four variants")
    monkeypatch.setitem(SUITES, "s", suite)
    path = repository / "data" / "results" / "README.md"
    path.parent.mkdir(parents=True)
    for record in records:
        append_record(path.with_name("s.jsonl"), record)
    which = {name: records[8][name] for name in ("id", "suite", "variant", "seed")}
    append_record(path.with_name("s-interventions.jsonl"),
                  {**which, "learned": 0.9, "mean": 0.8, "shuffle": 0.7, "uniform": 0.6, "images": 10,
                   "changed": {"mean": [1, 0], "shuffle": [2, 0], "uniform": [3, 0]}})
    path.write_text(OLD, encoding="utf-8")
    return path


def anew(text, folder):
    return with_tables(text, tables(summaries(folder), folder))


def test_tables_are_made_anew_where_they_stand(readme):
    assert update_tables(readme)
    text = readme.read_text(encoding="utf-8")
    summary = summarise(load_records(readme.with_name("s.jsonl")), SUITES["s"], [])
    assert summary.stopped.startswith("8 complete blocks")
    assert text.startswith(f"# Ours\n\n{MARKER}\n```\n{report(summary)}\n```\n\n<!-- interventions s -->\n")
    assert "```\n\nText with a table of" in text
    assert f"{TOGETHER}\n```\n{report_overview(overview([summary]), primary_only=True)}\n```\n" in text
    assert "```\n1 2\n```" in text and "an old" not in text
    assert not update_tables(readme) and readme.read_text(encoding="utf-8") == text


def test_a_table_without_a_place_stands_below_its_suites_or_at_the_end(readme):
    interventions = load_interventions(readme.with_name("s-interventions.jsonl"))
    text = anew(OLD, readme.parent)
    block = f"<!-- interventions s -->\n```\n{report_interventions(interventions)}\n```\n"
    summary = summarise(load_records(readme.with_name("s.jsonl")), SUITES["s"], [])
    assert interventions and f"{MARKER}\n```\n{report(summary)}\n```\n\n{block}\nText with" in text
    assert anew(text, readme.parent) == text
    both = anew("", readme.parent)
    assert f"\n\n## s\n\nfour variants\n\n{MARKER}" in both and both.endswith(block) and TOGETHER in both


def test_an_empty_place_is_filled_and_what_follows_it_is_kept(readme):
    after = "\nText between.\n\n```\nsomething else\n```\n"
    filled = anew(f"{MARKER}\n```\n```\n{after}", readme.parent)
    report_s = report(summarise(load_records(readme.with_name("s.jsonl")), SUITES["s"], []))
    assert filled.startswith(f"{MARKER}\n```\n{report_s}\n```\n\n<!-- interventions s -->\n")
    assert after in filled


def test_the_figure_is_drawn_where_the_text_shows_it(readme):
    update_tables(readme)
    assert not readme.with_name("summary.png").exists()
    readme.write_text(OLD + "![all suites](summary.png)\n", encoding="utf-8")
    update_tables(readme)
    assert readme.with_name("summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_that_has_two_places_is_refused_and_nothing_is_written(readme):
    readme.write_text(OLD + OLD, encoding="utf-8")
    with pytest.raises(ValueError, match="report s --> stands in the text 2 times"):
        update_tables(readme)
    assert readme.read_text(encoding="utf-8") == OLD + OLD


def test_the_command(readme, capsys, monkeypatch):
    assert cli.main(["suite", "tables"]) == 0
    assert "README.md: tables made anew" in capsys.readouterr().out
    other = readme.with_name("other.md")
    other.write_text("# Other\n", encoding="utf-8")
    assert cli.main(["suite", "tables", str(other)]) == 0
    assert "suite s" in other.read_text(encoding="utf-8")
    assert cli.main(["suite", "tables", "--json"]) == 0
    out = capsys.readouterr()
    assert '"changed": false' in out.out and "up to date" in out.err
    assert cli.main(["suite", "tables", "nowhere.md"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_that_sums_up(readme, capsys):
    everything = overview(summaries(readme.parent))
    for figure in ("all.png", "made/for/all.png"):
        assert cli.main(["suite", "summary", "--out", figure]) == 0
        assert capsys.readouterr().out == f"{report_overview(everything)}\n\nfigure {figure}\n"
    assert cli.main(["suite", "summary", "--json", "--records", str(readme.parent)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["contrast"] for row in shown["accuracies"] if row["primary"]] == ["mrla-light - depthwise"]
    assert shown["together"]["mrla-light - depthwise"]["cells"][0]["n"] == 8


def test_wrong_arguments_of_the_command_that_sums_up(readme, capsys):
    for arguments, words in ((["--out", "all.pdf"], "must be a file *.png"),
                             (["--records", "nowhere"], "nowhere holds no records of any suite")):
        assert cli.main(["suite", "summary", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
