"""Evidence: suites of runs, their records, and what may be concluded from them."""

from mrla_minimal.lab.evidence.contrasts import detectable_difference, holm, paired_interval, pooled_error, reading, summarise
from mrla_minimal.lab.evidence.records import load_records, merge_records
from mrla_minimal.lab.evidence.report import report, report_interventions
from mrla_minimal.lab.evidence.running import plan_suite, run_suite
from mrla_minimal.lab.evidence.suites import SUITES, Suite

__all__ = ["SUITES", "Suite", "detectable_difference", "holm", "load_records", "merge_records", "paired_interval", "plan_suite",
           "pooled_error", "reading", "report", "report_interventions", "run_suite", "summarise"]
