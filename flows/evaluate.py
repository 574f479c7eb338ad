"""The evaluate flow: truth and predictions into metrics and a report."""

from __future__ import annotations

from prefect import flow, task

from flows import steps
from flows.config import EvaluateConfig
from flows.errors import BelowGate
from flows.progress import current_progress
from flows.steps import Result
from flows.tasks import DURABLE, rounded, show_figure, show_link, show_markdown, show_table


@task(name="evaluate", **DURABLE)
def evaluate_task(config: EvaluateConfig) -> Result:
    return steps.evaluate(config, current_progress())


@flow(name="evaluate")
def evaluate(config: EvaluateConfig) -> Result:
    """Measures predictions as COCO does, or as another protocol.

    Returns:
        ``metrics`` (the headline numbers), ``per_class``, ``report``, ``figure``, ``markdown``, ``gates``.
    Raises:
        BelowGate: a number is below its ``fail_under``; it is raised last, when everything is written and shown.
    """
    found = run_evaluate(config)
    if found["missed"]:
        raise BelowGate("; ".join(found["missed"]), found)
    return found


def run_evaluate(config: EvaluateConfig, *, key: str = "metrics") -> Result:
    """The task with its artifacts, for any flow; ``key`` names the table of metrics."""
    found = evaluate_task(config)
    show_table(key, rounded(found["metrics"]), f"{found['protocol']} metrics ({found['iou_type']})")
    show_markdown(f"{key}-evaluation", found["markdown"], "Evaluation")
    show_figure(f"{key}-precision-recall", found["figure"], "Precision over recall")
    if found["report"]:
        show_link("report", found["report"], "Report")
    return found
