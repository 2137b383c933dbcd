"""The table of interventions: what each net reaches without its attention's choices, and means over nets."""

from collections.abc import Iterable
from dataclasses import dataclass

from mrla_minimal.lab.columns import first_column
from mrla_minimal.lab.evidence.contrasts import NO_SCATTER
from mrla_minimal.lab.evidence.intervals import Interval, paired_interval
from mrla_minimal.lab.evidence.interventions import INTERVENTIONS, standard_error
from mrla_minimal.lab.evidence.measures import MEASURES

REFITTED = ("learned", *INTERVENTIONS)      # with norms refitted: learned is the control, the refit alone

NOTES = """\
In brackets: the standard error over the choice of the test {drawn}. Norms refitted: each batch norm has its
mean and variance taken anew, on images cropped and flipped as in training, on both sides of the comparison;
learned is the control, the refit alone, against the net as trained. -: not measured so. Means are over nets,
one a seed, and their intervals (Student's t) cover seeds."""


@dataclass(frozen=True)
class MeanChange:
    """The mean change in `measure` (fractions of 1) by one intervention, over the nets of a variant.

    norms_refitted: whether both sides of the change have their norms refitted; then "learned" is the control,
    the refit alone. interval: 95 %, by Student's t over the nets, one a seed; None for fewer than two nets,
    and where all changes are equal.
    """

    variant: str
    intervention: str
    norms_refitted: bool
    nets: int
    mean: float
    interval: Interval | None
    measure: str = "test_accuracy"


def measures_of(record: dict) -> list[str]:
    """What a record of interventions measures: accuracy, or a detector's average precisions."""
    if "fields" not in record:
        return ["test_accuracy"]
    return [name for name in MEASURES if name in record["learned"]]


def learned(record: dict, measure: str) -> float:
    """What the net reaches as it was trained, a fraction of 1."""
    return record["learned"] if measure == "test_accuracy" else record["learned"][measure]


def change(record: dict, how: str, refitted: bool,
           measure: str = "test_accuracy") -> tuple[float, float] | None:
    """(change in a measure, its standard error over the test images) by one intervention on one net.

    None where the record, of an older form, holds none with norms refitted.
    """
    if refitted and "refitted" not in record:
        return None
    if measure != "test_accuracy":
        part = record["refitted"] if refitted else record
        before = record if how == "learned" else part
        return part[how][measure] - before["learned"][measure], part["errors"][how][measure]
    lost, gained = (record["refitted"] if refitted else record)["changed"][how]
    images = record["images"]
    return (gained - lost) / images, standard_error(lost, gained, images)


def intervention_means(records: Iterable[dict]) -> list[MeanChange]:
    """The mean changes of each variant: as trained, then with norms refitted, as far as there are such."""
    records, rows = list(records), []
    for measure in measures_of(records[0]) if records else ():
        for variant in sorted({record["variant"] for record in records}):
            of_variant = [record for record in records if record["variant"] == variant]
            for refitted, hows in ((False, INTERVENTIONS), (True, REFITTED)):
                for how in hows:
                    found = [change(record, how, refitted, measure) for record in of_variant]
                    changes = [of_net[0] for of_net in found if of_net is not None]
                    if changes:
                        mean, interval, _ = paired_interval(changes)
                        rows.append(MeanChange(variant, how, refitted, len(changes), mean, interval, measure))
    return rows


def report_interventions(records: Iterable[dict]) -> str:
    """Intervention records as text: a table of nets, a table of means over nets, what the columns mean.

    Both once for each measure: accuracy, or a detector's average precisions.
    """
    records = sorted(records, key=lambda record: (record["variant"], record["seed"]))
    names = measures_of(records[0]) if records else ["test_accuracy"]
    of_fields = any(record.get("fields", record["images"]) < record["images"] for record in records)
    drawn = "fields of view" if of_fields else "images"     # of blood each image is drawn by itself
    lines = [line for name in names for line in (*_tables(records, name), "")]
    return "\n".join([*lines, NOTES.format(drawn=drawn)])


def _tables(records: list[dict], name: str) -> list[str]:
    """The two tables of one measure."""
    measure = MEASURES[name]
    what = "test accuracy" if name == "test_accuracy" else f"{measure.short} on test"
    plain, refitted = ("".join(f"{how:>14}" for how in hows) for hows in (INTERVENTIONS, REFITTED))
    wide = first_column((record["variant"] for record in records), least=20)
    before = f"{'variant':<{wide}} {'seed':>4} {'learned %':>10}{plain}  "
    lines = [f"what the attention chooses: {what} as learned, and its change in points (standard "
             "error) without the choices", "",
             f"{'':<{len(before)}}{' norms refitted ':-^{len(refitted)}}", f"{before}{refitted}"]
    for record in records:
        plain, refitted = ("".join(f"{_points(change(record, how, refit, name)):>14}" for how in hows)
                           for refit, hows in ((False, INTERVENTIONS), (True, REFITTED)))
        lines.append(f"{record['variant']:<{wide}} {record['seed']:>4} {100 * learned(record, name):>10.2f}"
                     f"{plain}  {refitted}")
    means = {f"{row.variant}, {row.intervention}{', norms refitted' if row.norms_refitted else ''}": row
             for row in intervention_means(records) if row.measure == name}
    wide = first_column(means, least=44)
    lines += ["", f"{'mean over the nets of a variant':<{wide}}{'nets':>6}{'points':>8}  95 % over seeds"]
    for title, row in means.items():
        missing = NO_SCATTER if row.nets > 1 else "too few nets"
        lines.append(f"{title:<{wide}}{row.nets:>6}{measure.difference(row.mean):>8}  "
                     f"{measure.ends(row.interval) or missing}")
    return lines


def _points(found: tuple[float, float] | None) -> str:
    return "-" if found is None else f"{100 * found[0]:+.2f} ({100 * found[1]:.2f})"
