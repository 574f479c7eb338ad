"""A labelling run on three nodes and an S3 server upon which everything falls that can fall: no image is missing or
doubled, and the predictions are those of an undisturbed run.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import delta, open_dataset
from pipelines.storage import Store
from tests.conftest import S3Server
from tests.faults import paced
from tests.faults.chaos import Chaos, FaultLog, finished, start
from tests.faults.paced import Pace
from tests.faults.ray_nodes import RayNodes, ray_nodes
from tests.faults.remote import RemoteProxy, remote_proxy
from tests.faults.rules import Rule
from tests.integration.labelling import THRESHOLD, rows_by_image
from tests.integration.training import make_dataset
from workers.models import put_model

ROOT = Path(__file__).parents[2]
BOXMILL = Path(sys.executable).parent / "boxmill"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
IMAGES, TASKS, WORKERS = 240, 120, 3

SHARD, RECEIPT, IMAGE = r"/labels/pred-[^/]+/part-", r"/done/\d+\.json", "/images/part-"
LOST_SHARDS = Rule(fault="lose_answer", method="PUT", path=SHARD, count=2, name="lost answers of shard files")
LOST_RECEIPTS = Rule(fault="lose_answer", method="PUT", path=RECEIPT, count=3, name="lost answers of receipts")
BURST = Rule(fault="error_503", path="chaos", count=25, name="a burst of 503")
CUT_IMAGES = Rule(fault="cut", method="GET", path=IMAGE, count=4, name="cut bodies of images")
RESETS = Rule(fault="reset", method="GET|PUT", path="chaos", count=4, name="resets")
BURST_AT_START = Rule(fault="error_503", path="_jobs", count=8, name="a burst of 503 at the restart")
STALLS = Rule(fault="stall", method="GET", path=IMAGE, count=2, seconds=5.0, name="stalls")
AGAIN = Rule(fault="lose_answer", method="PUT", path=RECEIPT, count=2, name="lost answers of receipts again")
CUT_RECEIPTS = Rule(fault="cut", method="GET", path=RECEIPT, count=5, name="cut bodies of receipts")
LOST_TABLE = Rule(fault="lose_answer", method="PUT", path=r"pred-[^/]+/_delta_log/0{20}\.json", name="lost new table")
LOST_COMMIT = Rule(fault="lose_answer", method="PUT", path=r"pred-[^/]+/_delta_log/0{19}1\.json", name="lost commit")
AMONG_RECEIPTS = {
    rule.name for rule in (LOST_SHARDS, LOST_RECEIPTS, BURST, CUT_IMAGES, RESETS, BURST_AT_START, STALLS, AGAIN)
} | {
    "first worker killed",
    "second worker killed",
    "first node killed",
    "second node killed",
    "zombie 1 stopped",
    "zombie 2 stopped",
    "driver killed",
    "zombie 1 woken",
}
AFTER_THEM = {LOST_TABLE.name, LOST_COMMIT.name, "zombie 2 woken"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Where the run takes place."""

    server: S3Server
    proxy: RemoteProxy
    nodes: RayNodes
    pace: Pace
    output: Path

    def command(self, dataset: str, workers: int = WORKERS) -> list[str]:
        """Labels one of the equal datasets."""
        command = [str(BOXMILL), "label", self.server.uri(f"{dataset}/scenes"), "--model", self.server.uri("model")]
        command += ["--score-threshold", str(THRESHOLD), "--workers", str(workers), "--set", "task_images=2"]
        return [*command, "--ray-address", self.nodes.address, "--json"]


@pytest.fixture
def field(s3_server: S3Server, tmp_path: Path) -> Iterator[Field]:
    """Two equal datasets and a model in a bucket behind the proxy; a cluster whose nodes know the proxy alone."""
    pace = Pace(tmp_path / "pace")
    pace.set(0.0)
    make_dataset(str(tmp_path / "scenes"), num_train=IMAGES - 40, num_val=40)
    for name in ("undisturbed", "chaos"):
        fs = Store.open(s3_server.uri(name)).fs
        fs.put(str(tmp_path / "scenes"), f"{s3_server.bucket}/{name}/scenes", recursive=True)
    paced.save(tmp_path / "model", open_dataset(str(tmp_path / "scenes")).label_map, pace)
    put_model(tmp_path / "model", s3_server.uri("model"))
    with remote_proxy(s3_server.endpoint) as proxy:
        environment = {
            **s3_server.environment,
            "AWS_ENDPOINT_URL": proxy.endpoint,
            "PYTHONPATH": str(ROOT),
            "BOXMILL_CACHE": str(tmp_path / "cache"),
        }
        with ray_nodes(environment, cpus=(0, 2, 2)) as nodes:
            yield Field(server=s3_server, proxy=proxy, nodes=nodes, pace=pace, output=tmp_path)


def test_a_run_upon_which_everything_falls(field: Field) -> None:
    output = field.output / "undisturbed"
    undisturbed = json.loads(finished(start(field.command("undisturbed", workers=1), field.nodes, output), output))
    assert undisturbed["num_images"] == IMAGES and undisturbed["num_objects"] > 10 * IMAGES
    field.proxy.clear()

    began = time.time()
    log = FaultLog(field.proxy, "chaos/scenes")
    chaos = Chaos(
        nodes=field.nodes,
        proxy=field.proxy,
        pace=field.pace,
        log=log,
        workers=WORKERS,
        command=field.command("chaos"),
        output=field.output,
    )
    try:
        made = disturbed(chaos)
    finally:
        print(f"\n{log.table(began)}")

    assert set(log.receipts()) == set(range(TASKS))
    fallen = {fell.what: fell for fell in log.fallen()}
    assert fallen.keys() == AMONG_RECEIPTS | AFTER_THEM | {CUT_RECEIPTS.name} and len(fallen) >= 10
    assert all(0 < fallen[what].before < TASKS for what in AMONG_RECEIPTS)
    assert all(fallen[what].before == TASKS for what in AFTER_THEM)
    assert fallen["zombie 2 woken"].began > fallen[LOST_COMMIT.name].ended

    assert (made["found"], made["num_images"], made["num_quarantined"]) == (False, IMAGES, 0)
    expected = Counter(record.image_id for record in open_dataset(field.server.uri("chaos/scenes")).records())
    assert set(expected.values()) == {1} and len(expected) == IMAGES
    rows = rows_by_image(made["reference"])
    assert Counter(row[0] for row in rows) == expected
    assert rows == rows_by_image(undisturbed["reference"])
    assert made["digest"] == undisturbed["digest"]
    uri, _, label_set = made["reference"].rpartition(":")[0].partition("@")
    assert len(list(delta.history(Store.open(uri).sub(label_set)))) == 1


def disturbed(chaos: Chaos) -> dict[str, Any]:
    """One run, killed once and resumed by the same command; what the command says at its end."""
    with chaos.running():
        chaos.all_at_work()
        chaos.more_receipts(2)
        chaos.network(LOST_SHARDS)
        chaos.network(LOST_RECEIPTS)
        chaos.kill_worker("first worker killed")
        chaos.network(BURST)
        chaos.network(CUT_IMAGES)
        chaos.all_at_work()
        zombies = chaos.kill_node("first node killed", zombies=2)
        # Tasks are given out in their order: whatever a zombie has in hand is not far beyond what is done.
        begun = range(max(chaos.log.receipts()) + 1 + 4 * WORKERS)
        chaos.all_at_work()
        chaos.network(RESETS)

        done = chaos.kill_driver("driver killed")
        chaos.proxy.set_rules([BURST_AT_START])
        chaos.start_driver()
        chaos.more_receipts(2)
        chaos.network(STALLS)
        chaos.wait(lambda: chaos.log.receipts().keys() >= set(begun), "others have done the zombies' tasks")
        chaos.wake(zombies[0], "zombie 1 woken")
        chaos.kill_worker("second worker killed")
        chaos.all_at_work()
        chaos.kill_node("second node killed")
        chaos.all_at_work()
        chaos.network(AGAIN)

        chaos.proxy.set_rules([CUT_RECEIPTS, LOST_TABLE, LOST_COMMIT])
        made = json.loads(chaos.finish())
        assert done <= made["resumed"] < TASKS == made["tasks"]
        chaos.wake(zombies[1], "zombie 2 woken")
    return dict(made)
