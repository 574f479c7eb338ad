"""What the flows' tasks have in common: when to try again, when a cached result may be used, what is shown."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from prefect import Task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.errors import is_bad_input, unwrap
from flows.steps import Result

# A result is a small JSON document. Retries are for a store or a cluster that failed for a moment; the stages resume
# from their receipts, so nothing is done twice.
DURABLE: dict[str, Any] = {
    "persist_result": True,
    "result_serializer": "json",
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    "retry_condition_fn": lambda task, task_run, state: may_succeed_later(state),
}


def may_succeed_later(state: Any) -> bool:
    """True for a store, a cluster or a worker that failed; bad input and mistakes of ours stay as they are."""
    error = state.result(raise_on_failure=False)
    if not isinstance(error, BaseException) or is_bad_input(error):
        return False
    return isinstance(unwrap(error), OSError | RuntimeError) or type(error).__module__.startswith("ray.")


def verified(task: Task[..., Result], config: Any, is_there: Callable[[Result], bool]) -> Result:
    """Runs a task, and runs it again without its cache where the cached reference leads nowhere any more.

    Args:
        is_there: whether what the result refers to exists and has the digest that the result says.
    """
    result = task(config)
    if is_there(result):
        return result
    return task.with_options(refresh_cache=True)(config)


def dataset_is_there(result: Result) -> bool:
    """The dataset version or prediction set still has the digest it was made with."""
    from pipelines.versions import open_dataset

    try:
        return open_dataset(result["reference"]).digest == result["digest"]
    except ValueError:
        return False


def predictions_are_there(result: Result) -> bool:
    """The prediction sets are, and so is the COCO results file where one was asked for."""
    from pipelines.storage import split_uri

    results = result["coco_results_uri"]
    if results is not None:
        store, name = split_uri(results)
        if not store.exists(name):
            return False
    return all(dataset_is_there(one) for one in (result, *result.get("others", ())))


def model_is_there(result: Result) -> bool:
    """The model's manifest is there with the digest it was made with."""
    from workers.models import describe_model

    described = describe_model(result["uri"])
    return described is not None and described["digest"] == result["digest"]


def digest_of_dataset(reference: str) -> str:
    """The digest of what a dataset or prediction reference names at this moment."""
    from pipelines.versions import open_dataset

    return open_dataset(reference).digest


def digest_of_model(uri: str) -> str:
    """The digest in a model's manifest, '' where there is no model (the task then says so itself)."""
    from workers.models import describe_model

    return str((describe_model(uri) or {}).get("digest", ""))


def rounded(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metrics for people; None where there was no truth to measure on."""
    return {name: None if value is None else round(value, 4) for name, value in numbers.items()}


def show_table(key: str, rows: Mapping[str, Any], description: str) -> None:
    """A two-column table artifact."""
    create_table_artifact(
        key=key, table=[{"name": name, "value": value} for name, value in rows.items()], description=description
    )


def show_markdown(key: str, text: str, description: str) -> None:
    """A document as an artifact."""
    create_markdown_artifact(key=key, markdown=text, description=description)


def show_figure(key: str, svg: str, description: str) -> None:
    """An SVG as an artifact; inside markdown, since image artifacts must be public URLs."""
    encoded = base64.b64encode(svg.encode()).decode()
    create_markdown_artifact(
        key=key, markdown=f"![{description}](data:image/svg+xml;base64,{encoded})", description=description
    )


def show_link(key: str, uri: str, text: str) -> None:
    """The address of something that was written."""
    create_link_artifact(key=key, link=uri if "://" in uri else f"file://{uri}", link_text=text)
