"""Pages for people: one self-contained HTML file each.

This package reads files that other stages wrote and computes nothing, so a page can be
made again years later, without the model. A training that runs is followed in the
progress bar and in `history.jsonl`, not here.
"""

from tumorlens.report.audit_page import show_claims_on_audit, write_audit_page
from tumorlens.report.benchmark_page import write_benchmark_page
from tumorlens.report.comparison_page import write_comparison_page
from tumorlens.report.external_page import write_external_page
from tumorlens.report.review_page import write_review_page
from tumorlens.report.run_page import write_run_report
from tumorlens.report.stress_page import write_stress_page

__all__ = [
    "show_claims_on_audit",
    "write_audit_page",
    "write_benchmark_page",
    "write_comparison_page",
    "write_external_page",
    "write_review_page",
    "write_run_report",
    "write_stress_page",
]
