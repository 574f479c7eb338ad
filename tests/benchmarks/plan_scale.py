"""Planning and committing a labelling run of very many images and shards, without a model: what the driver does.

    make bench NAME=plan-scale ARGS='--record'

A dataset's label files and what a finished run leaves, receipts and their bundles, are made up (that is the workers'
part and not measured). Measured, each step in a process of its own: planning (open the dataset, cut it into tasks,
write the plan, list what is missing), committing (list and read all receipts, check the ledger, write the account, one
commit, open the version), and the highest memory of the process (VmHWM: shared libraries count in full), which has
loaded Ray Data besides, as a driver has that ran the tasks. Cases: 1,000,000 rows in 1,000 shards; 1,000,000 images in
1,000 folders, labelled where they lie; 1,000, 10,000 and 100,000 shards on a local disk; 100, 1,000 and 10,000 shards
on S3 (moto, in a process of its own; in brackets its processor seconds: it serves one request at a time). Each is
committed a second time as if its driver had died before it bundled anything, for comparison. The bars: 60 s for
planning, 60 s for the commit, 1 GiB, and a cost for each shard that does not grow. The exit status is 1 where one is
missed. ``--scale 0.01`` is a quick look.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs

from pipelines.commits import commit_labels
from pipelines.jobs import Job, Receipt
from pipelines.ledger import Ledger
from pipelines.predictions import commit_predictions, open_predictions
from pipelines.records import Annotations, Category, LabelMap
from pipelines.schema import LabelRow, labels_to_arrow
from pipelines.shards import ShardFile
from pipelines.storage import Store
from tests.benchmarks.processes import process_tree
from tests.benchmarks.record import append_result, load_average, table
from tests.conftest import serve_s3
from workers.label import plan_facts
from workers.label_account import add_up, write_account
from workers.label_config import LabelConfig
from workers.label_listing import open_input
from workers.label_plan import ModelFacts, find_or_check, make_plan
from workers.label_receipts import ReceiptBundle
from workers.label_tasks import planned_images, save_tasks

LABEL_MAP = LabelMap(categories=(Category(category_id=1, name="thing"),))
MOST_SECONDS, MOST_GIB, MOST_GROWTH = 60.0, 1.0, 1.5
_SETUP_THREADS = 16
_SERVER = ("server", "alone_server")
_OBJECTS = 2
_NUMBER = b"@@@@@@"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is planned: shards of so many rows each; in a folder they are folders, and the images lie in them."""

    where: str  # local, s3 or folder
    shards: int
    rows: int


CASES = (
    Case(where="local", shards=1_000, rows=1_000),
    Case(where="folder", shards=1_000, rows=1_000),
    *(Case(where="local", shards=n, rows=10) for n in (1_000, 10_000, 100_000)),
    *(Case(where="s3", shards=n, rows=10) for n in (100, 1_000, 10_000)),
)


def make_dataset(uri: str, case: Case) -> None:
    """Label files of shards whose images nobody looks at, committed."""
    store = Store.open(uri)
    # One file that is not compressed, in which each shard puts its own number: a hundredth of the work of writing it.
    same = _parquet(labels_to_arrow([_row(i) for i in range(case.rows)]))

    def write(number: int) -> ShardFile:
        content = same.replace(_NUMBER, b"%06d" % number)
        stem = f"part-{hashlib.sha256(str(number).encode()).hexdigest()[:32]}"
        path = f"labels/gt/{stem}.{hashlib.sha256(content).hexdigest()[:32]}.parquet"
        _put(store, path, content)
        rows = case.rows
        return ShardFile(path=path, size=len(content), rows=rows, num_objects=rows * _OBJECTS, splits={"train": rows})

    ledger = Ledger()
    ledger.imported("image", case.shards * case.rows)
    commit_labels(
        uri,
        "gt",
        list(_many(write, case.shards)),
        plan_id="made-up",
        label_map=LABEL_MAP,
        images_version=0,
        ledger=ledger.sums(),
    )


def make_folder(path: Path, case: Case) -> None:
    """Images that lie where nobody put them for us; planning asks for their names, sizes and times."""
    for shard in range(case.shards):
        folder = path / f"{shard:06d}"
        folder.mkdir(parents=True)
        for row in range(case.rows):
            os.close(os.open(folder / f"{row:06d}.jpg", os.O_CREAT))


def _row(number: int) -> LabelRow:
    boxes = np.array([[4.0, 5, 60, 70]] * _OBJECTS)
    return LabelRow(
        image_id=f"{_NUMBER.decode()}/{number:04d}.jpg",
        row=number,
        row_group=number // 128,
        split="train",
        coco_image_id=number + 1,
        width=640,
        height=480,
        annotations=Annotations.from_boxes(boxes, np.ones(_OBJECTS, np.int64)),
    )


def _parquet(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="none", write_page_index=True)
    return sink.getvalue()


def _put(store: Store, path: str, content: bytes) -> None:
    if not store.is_local:
        store.write_bytes(path, content)
        return
    # Unlike the store without fsync: that would be most of what a test of 200,000 files does.
    target = Path(store.root) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _many(make: Callable[[int], Any], count: int) -> Iterator[Any]:
    with ThreadPoolExecutor(_SETUP_THREADS) as pool:
        yield from pool.map(make, range(count))


def make_receipts(job: Job) -> list[Receipt]:
    """As workers leave them."""
    rows, label_set = planned_images(job), job.plan().metadata["label_set"]

    def write(task: int) -> Receipt:
        ledger = Ledger()
        ledger.imported("image", rows[task])
        ledger.imported("annotation", rows[task] * _OBJECTS)
        name = f"{hashlib.sha256(str(task).encode()).hexdigest()[:32]}.parquet"
        file = ShardFile(
            path=f"labels/{label_set}/part-{task:032d}.0000000.{name}",
            size=4000,
            rows=rows[task],
            num_objects=rows[task] * _OBJECTS,
            splits={"train": rows[task]},
        )
        receipt = Receipt(task_id=task, files=(file,), ledger=ledger.to_json(), extra={"failed": 0, "quarantine": None})
        _put(job.store, f"done/{task:06d}.json", json.dumps(receipt.to_json()).encode())
        return receipt

    return list(_many(write, len(rows)))


def make_bundles(job: Job, receipts: list[Receipt]) -> None:
    """As the driver leaves them."""
    bundle = ReceiptBundle(job)
    for receipt in receipts:
        bundle.add(json.dumps(receipt.to_json()))


def _images(uri: str) -> Path | None:
    """Where a case's images lie, if they are in no dataset."""
    there = Path(uri) / "pictures"
    return there if "://" not in uri and there.is_dir() else None


def plan(uri: str) -> Job:
    """What ``label`` does until workers start."""
    there = _images(uri)
    config = LabelConfig(input=str(there) if there else uri, model="made-up", out=f"{uri}/out" if there else "pred")
    model = ModelFacts(
        uri="made-up",
        digest="f00d" * 16,
        categories=tuple(LABEL_MAP.to_json()),
        spec={"name": "none", "num_classes": 1, "options": {}},
        preprocessing={"mean": [0, 0, 0], "std": [1, 1, 1], "size": 320, "divisor": 32},
    )
    source = open_input(config)
    made = make_plan(config, source, model)
    assert find_or_check(source, made, model) is None
    job = Job(made.root, made.plan_id)
    save_tasks(job, source, made, plan_facts(source, made, model))
    assert len(job.missing()) == job.plan().num_tasks
    return job


def commit(job: Job, case: Case) -> None:
    """What ``label`` does when the workers are done."""
    assert job.missing() == []
    sums = add_up(job.each_receipt())
    write_account(job.dataset_uri, sums.account(job.plan_id, price_per_hour=None, run=None))
    images = case.shards * case.rows
    sums.ledger.check(images=images, annotations=images * _OBJECTS)
    made = commit_predictions(
        job.dataset_uri,
        job.plan().metadata["label_set"],
        sums.files,
        plan_id=job.plan_id,
        label_map=LABEL_MAP,
        images_version=None if case.where == "folder" else 0,
        ledger=sums.ledger,
        provenance={"model": {"digest": "f00d"}},
    )
    opened = open_predictions(made.reference)
    assert (opened.num_images, len(opened.labels.shards)) == (images, len(sums.files)) and not made.found


@contextmanager
def place(case: Case, folder: Path) -> Iterator[str]:
    """Where a case's dataset goes; on S3 the server is there as long as the case."""
    folder.mkdir()
    if case.where != "s3":
        yield str(folder / "data")
        shutil.rmtree(folder)
        return
    with serve_s3(folder / "moto.log") as server:
        os.environ.update(server.environment)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server.uri("data")


def measure(step: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def run_case(uri: str, case: Case) -> dict[str, float]:
    """The steps of one case, each in a process of its own, as a driver that is started again would do them."""
    if case.where == "folder":
        make_folder(Path(uri) / "pictures", case)
    else:
        make_dataset(uri, case)
    planned = _in_process("plan", uri, case)
    job = Job(str(planned["root"]), str(planned["plan_id"]))
    receipts = make_receipts(job)
    alone, server_alone = _committed(job, case)
    table = Store.open(job.dataset_uri).sub("labels", job.plan().metadata["label_set"])
    table.fs.rm(table.root, recursive=True)
    make_bundles(job, receipts)
    committed, server = _committed(job, case)
    return {
        "server_cpu_s": server,
        "alone_server_cpu_s": server_alone,
        "alone_s": alone["seconds"],
        "alone_cpu_s": alone["cpu_seconds"],
        "tasks": planned["tasks"],
        "plan_s": planned["seconds"],
        "plan_cpu_s": planned["cpu_seconds"],
        "commit_s": committed["seconds"],
        "commit_cpu_s": committed["cpu_seconds"],
        "memory_gib": max(found["memory_gib"] for found in (planned, alone, committed)),
        "libraries_gib": planned["libraries_gib"],
    }


def _committed(job: Job, case: Case) -> tuple[dict[str, float], float]:
    """What the commit took, and the S3 server's processor seconds of it."""
    before = server_cpu()
    found = _in_process("commit", job.dataset_uri, case, job.plan_id)
    return found, server_cpu() - before


def server_cpu() -> float:
    """Processor seconds that the S3 server has used so far: between two steps nothing else runs below this process."""
    seconds = 0.0
    for pid in set(process_tree(os.getpid())) - {os.getpid()}:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _in_process(step: str, uri: str, case: Case, plan_id: str = "") -> dict[str, float]:
    given = json.dumps({"step": step, "uri": uri, "case": asdict(case), "plan_id": plan_id})
    command = [sys.executable, "-m", "tests.benchmarks.plan_scale", "--inside", given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _inside(given: str) -> None:
    # When it commits, a driver has loaded what it ran the tasks with.
    import ray.data  # noqa: F401

    values = json.loads(given)
    case = Case(**values["case"])
    libraries = _resident()
    found: dict[str, object] = {}
    if values["step"] == "plan":
        jobs: list[Job] = []
        found = measure(lambda: jobs.append(plan(values["uri"])))
        found |= {"root": jobs[0].dataset_uri, "plan_id": jobs[0].plan_id, "tasks": jobs[0].plan().num_tasks}
    else:
        found = measure(lambda: commit(Job(values["uri"], values["plan_id"]), case))
    print(json.dumps(found | {"memory_gib": _resident(), "libraries_gib": libraries}))


def _resident() -> float:
    """The highest so far, GiB, pages of libraries that others share included.

    Not ``ru_maxrss``, which begins with what the parent had when it started this process.
    """
    told = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(told.split()[1]) / 2**20


def results(rows: list[tuple[Case, dict[str, float]]]) -> tuple[str, list[str]]:
    """A table, and which bars were missed."""
    lines = []
    missed = []
    for case, found in rows:
        per = {step: found[f"{step}_cpu_s"] / case.shards * 1000 for step in ("plan", "commit", "alone")}
        server = {step: f" ({found[f'{step}_cpu_s']:.1f})" if case.where == "s3" else "" for step in _SERVER}
        lines.append(
            {
                "where": case.where,
                "shards": f"{case.shards:,}",
                "rows": f"{case.shards * case.rows:,}",
                "tasks": f"{int(found['tasks']):,}",
                "planning s": f"{found['plan_s']:.1f}",
                "commit s": f"{found['commit_s']:.1f}{server['server']}",
                "without bundles": f"{found['alone_s']:.1f}{server['alone_server']}",
                "CPU ms a shard: planning": f"{per['plan']:.3f}",
                "commit": f"{per['commit']:.3f}",
                "without": f"{per['alone']:.3f}",
                "driver GiB": f"{found['memory_gib']:.2f}",
                "of it libraries": f"{found['libraries_gib']:.2f}",
            }
        )
        name = f"{case.where}, {case.shards:,} shards of {case.rows:,} rows"
        for step in ("plan", "commit"):
            if found[f"{step}_s"] > MOST_SECONDS:
                missed.append(f"{name}: {step} takes {found[f'{step}_s']:.0f} s, more than {MOST_SECONDS:.0f}")
        if found["memory_gib"] > MOST_GIB:
            missed.append(f"{name}: {found['memory_gib']:.2f} GiB, more than {MOST_GIB}")
    for where in ("local", "s3"):
        decades = [(c, f) for c, f in rows if c.where == where and c.rows == 10]
        for step in ("plan", "commit"):
            # From the middle on: in the smallest case what is done once weighs more than the shards.
            cost = [f[f"{step}_cpu_s"] / c.shards for c, f in decades[1:]]
            if len(cost) == 2 and cost[1] > MOST_GROWTH * cost[0]:
                missed.append(f"{where}: {step} costs {cost[1] / cost[0]:.1f} times as much a shard, ten times as many")
    return table(lines), missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of shards")
    parser.add_argument("--where", choices=["local", "folder", "s3"], help="only these cases")
    parser.add_argument("--record", action="store_true", help="add the numbers to results.md")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _inside(options.inside)
        return
    load = load_average()
    cases = [
        replace(c, shards=max(2, round(c.shards * options.scale))) for c in CASES if options.where in (None, c.where)
    ]
    rows = []
    with tempfile.TemporaryDirectory(prefix="boxmill-scale-") as folder:
        for number, case in enumerate(cases):
            with place(case, Path(folder) / str(number)) as uri:
                rows.append((case, run_case(uri, case)))
            print(results(rows[-1:])[0].splitlines()[-1], flush=True)
    text, missed = results(rows)
    print(text, *missed, sep="\n")
    if options.record:
        append_result("Planning and committing many shards", text, load_before=load)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
