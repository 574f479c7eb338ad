"""Memory of ingesting a COCO file as large as COCO's own: 118,000 images, 860,000 annotations, about 450 MB of JSON.

    make bench NAME=ingest-memory ARGS='--record'

The images are tiny; only the JSON matters. Measured is the highest resident memory (VmHWM) of any process of the
ingest, Ray's included. The bar: 1.5 GiB. The exit status is 1 above it. ``--scale 0.05`` is a quick look.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from pipelines.versions import open_dataset
from tests.benchmarks.processes import process_tree
from tests.benchmarks.record import append_result, load_average, table

IMAGES, ANNOTATIONS, MOST_GIB = 118_000, 860_000, 1.5
_INGEST = """
import json, sys
from pipelines.sources import open_source
from workers.ingest import ingest
version = ingest(open_source("coco", annotations=sys.argv[1], images=sys.argv[2]), sys.argv[3], num_cpus=2)
print(json.dumps(version.to_json()))
"""


def generate(folder: Path, images: int, annotations: int) -> Path:
    """Image files and one JSON file with polygons of about COCO's mean length, written as a stream."""
    rng = random.Random(0)
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 120, 30)).save(out, "JPEG")
    tiny = out.getvalue()
    (folder / "images").mkdir(parents=True)
    path = folder / "instances_train.json"
    with path.open("w") as stream:
        stream.write('{"images": [')
        for i in range(1, images + 1):
            name = f"{i:012d}.jpg"
            comment = name.encode()
            marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (folder / "images" / name).write_bytes(tiny[:2] + marker + tiny[2:])
            entry = {"id": i, "file_name": name, "width": 64, "height": 48, "license": 1}
            stream.write((", " if i > 1 else "") + json.dumps(entry))
        stream.write('], "annotations": [')
        for i in range(1, annotations + 1):
            stream.write((", " if i > 1 else "") + json.dumps(_annotation(i, rng, images)))
        stream.write('], "categories": ' + json.dumps([{"id": c, "name": f"class {c}"} for c in range(1, 81)]) + "}")
    return path


def _annotation(number: int, rng: random.Random, images: int) -> dict[str, object]:
    x, y = rng.uniform(0, 40), rng.uniform(0, 30)
    outline = [round(v + rng.uniform(0, 17), 2) for _ in range(25) for v in (x, y)]
    return {
        "segmentation": [outline],
        "area": round(rng.uniform(10, 300), 4),
        "iscrowd": 0,
        "image_id": rng.randint(1, images),
        "bbox": [round(x, 2), round(y, 2), 17.5, 17.25],
        "category_id": rng.randint(1, 80),
        "id": number,
    }


def measure(annotations: Path, dataset: Path) -> tuple[dict[str, float], float]:
    """Ingest in a process of its own: GiB at the peak by process name, and seconds."""
    command = [sys.executable, "-c", _INGEST, str(annotations), str(annotations.parent / "images"), str(dataset)]
    started = time.monotonic()
    peaks: dict[int, tuple[str, int]] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for pid in process_tree(process.pid):
                status = _status(pid)
                if status is not None:
                    peaks[pid] = status
            time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"the ingest ended with {process.returncode}")
    seconds = time.monotonic() - started
    named: dict[str, float] = {}
    for name, kib in peaks.values():
        named[name] = max(named.get(name, 0.0), kib / 2**20)
    return named, seconds


def _status(pid: int) -> tuple[str, int] | None:
    """Name and highest resident KiB."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    except OSError:
        return None
    return (lines["Name"].strip(), int(lines["VmHWM"].split()[0])) if "VmHWM" in lines else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path("bench-out/ingest-memory"))
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    images, annotations = int(IMAGES * args.scale), int(ANNOTATIONS * args.scale)
    shutil.rmtree(args.work, ignore_errors=True)
    before = load_average()
    path = generate(args.work, images, annotations)
    peaks, seconds = measure(path, args.work / "dataset")
    dataset = open_dataset(str(args.work / "dataset"))
    assert (dataset.num_images, dataset.num_objects) == (images, annotations), "something was lost"
    top = sorted(peaks.items(), key=lambda item: -item[1])[:6]
    body = table([{"process": name, "peak GiB": f"{gib:.2f}"} for name, gib in top])
    size = path.stat().st_size / 2**20
    line = f"ingest-memory: json_MB={size:.0f} images={images} peak_GiB={top[0][1]:.2f} seconds={seconds:.0f}"
    if args.record:
        append_result("ingest-memory", body + "\n\n" + line, load_before=before)
    shutil.rmtree(args.work, ignore_errors=True)
    print(body + "\n" + line)
    sys.exit(top[0][1] > MOST_GIB)


if __name__ == "__main__":
    main()
