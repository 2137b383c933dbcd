"""Evidence: suites of runs, their records, and what may be concluded from them."""

from mrla_minimal.lab.evidence.contrasts import Contrast, Summary, summarise
from mrla_minimal.lab.evidence.declared import SUITES
from mrla_minimal.lab.evidence.designs import Effect, LogUniform
from mrla_minimal.lab.evidence.intervals import (
    MARGIN,
    detectable_difference,
    holm,
    paired_interval,
    pooled_error,
)
from mrla_minimal.lab.evidence.intervention_table import intervention_means, report_interventions
from mrla_minimal.lab.evidence.merging import merge_records
from mrla_minimal.lab.evidence.planning import plan_suite
from mrla_minimal.lab.evidence.records import load_interventions, load_records
from mrla_minimal.lab.evidence.report import report
from mrla_minimal.lab.evidence.running import run_suite
from mrla_minimal.lab.evidence.suites import Suite

__all__ = ["MARGIN", "SUITES", "Contrast", "Effect", "LogUniform", "Suite", "Summary",
           "detectable_difference", "holm", "intervention_means", "load_interventions", "load_records",
           "merge_records", "paired_interval", "plan_suite", "pooled_error", "report",
           "report_interventions", "run_suite", "summarise"]
