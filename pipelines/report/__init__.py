"""The report: one HTML page that needs nothing but itself."""

from pipelines.report.figures import pr_curve_svg
from pipelines.report.page import write_report

__all__ = ["pr_curve_svg", "write_report"]
