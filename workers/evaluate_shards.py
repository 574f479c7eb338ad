"""Shards of predictions matched by Ray tasks, and counted together where they come in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from pipelines.metrics.incremental import EvaluationUnit, UnitCounts, count_unit
from pipelines.metrics.settings import MatchSettings
from pipelines.predictions import PredictionSet
from pipelines.versions import Dataset
from workers.cluster import ray_session
from workers.task_window import as_done

_RETRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CountOnRay:
    """Matches units in tasks of one CPU each.

    Attributes:
        dataset, predictions, splits, settings: as for ``count_unit``.
        workers: tasks at once; results that nobody has taken yet are no more.
        ray_address: of a cluster; None uses RAY_ADDRESS, or else a cluster of this machine's own.
    """

    dataset: Dataset
    predictions: PredictionSet
    splits: Collection[str] | None
    settings: MatchSettings
    workers: int
    ray_address: str | None = None

    def __call__(self, units: Sequence[EvaluationUnit]) -> Iterator[tuple[int, UnitCounts]]:
        """Places in ``units`` with the counts, as they are done.

        Raises:
            ValueError: what ``count_unit`` raises, and a cluster that does not answer.
        """
        if not units:
            return
        import ray
        from ray.exceptions import RayTaskError

        with ray_session(self.ray_address):
            # Opened once here, and sent once to each node.
            shared = [ray.put(value) for value in (self.dataset, self.predictions, self.splits, self.settings)]
            task = ray.remote(num_cpus=1, max_retries=_RETRIES, retry_exceptions=[OSError])(count_unit)
            finished = as_done(lambda item: task.remote(item[1], *shared), enumerate(units), at_once=self.workers)
            try:
                for (place, _), counts in finished:
                    yield place, counts
            except RayTaskError as error:
                # What the task says, not where Ray ran it.
                raise (error.cause or error) from None
