"""Images labelled out of WebDataset tars and from a list of URLs."""

from __future__ import annotations

import functools
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import open_predictions
from pipelines.quarantine import read_quarantine
from tests.integration import poisonous
from tests.making import encoded
from workers.label import LabelConfig, label

pytestmark = pytest.mark.ray


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder behind an HTTP server on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Tests print nothing."""

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.long
def test_tars_of_samples(tmp_path, ray_cluster):
    images = {f"{i:03d}.jpg": encoded(24 + i, 16, seed=i) for i in range(4)}
    images["003.jpg"] = images["003.jpg"][:-30]
    for at, tar in enumerate(("shard-00.tar", "shard-01.tar")):
        part = dict(list(images.items())[2 * at : 2 * at + 2])
        write_tar(tmp_path / tar, {**part, "009.cls": b"5"})
    config = LabelConfig(
        input=str(tmp_path / "shard-{00..01}.tar"),
        out=str(tmp_path / "out"),
        workers=1,
        **poisonous.save(tmp_path / "model", tmp_path / "memory"),
    )
    made = label(config)
    predictions = open_predictions(made.reference)
    ids = ["shard-00/000.jpg", "shard-00/001.jpg", "shard-01/002.jpg", "shard-01/003.jpg"]
    assert [row.image_id for row in predictions.rows()] == ids and made.num_quarantined == 1
    assert {r.image_id: r.image for r in predictions.records()} == dict(zip(ids[:3], images.values()))
    (bad,) = read_quarantine(config.out, predictions.metadata["plan_id"])
    assert bad.source == str(tmp_path / "shard-01.tar") + "!/003.jpg" and bad.stage == "decode"

    assert label(config).found
    write_tar(tmp_path / "shard-01.tar", {"002.jpg": images["000.jpg"]})
    assert label(config).reference != made.reference, "other tars are another plan"


@pytest.mark.long
def test_a_list_of_urls(tmp_path, ray_cluster):
    folder = tmp_path / "served"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.jpg").write_bytes(encoded(24 + i, 16, seed=i))
    (folder / "text.jpg").write_bytes(b"no image at all")
    with served(folder) as url:
        lines = [f"{url}/0.jpg?signature=secret", f"{url}/1.jpg", f"{url}/1.jpg", f"{url}/text.jpg", f"{url}/gone.jpg"]
        (tmp_path / "images.txt").write_text("# a list\n" + "\n".join(lines) + "\nno-url\n")
        config = LabelConfig(
            input=str(tmp_path / "images.txt"),
            out=str(tmp_path / "out"),
            workers=1,
            **poisonous.save(tmp_path / "model", tmp_path / "memory"),
        )
        made = label(config)
        predictions = open_predictions(made.reference)
        read = [record.image for record in predictions.records()]
    assert (made.num_images, made.num_quarantined) == (4, 2 + 2)
    assert read == [(folder / f"{i}.jpg").read_bytes() for i in range(2)]
    bad = {row.source.rpartition("/")[2]: row.stage for row in read_quarantine(config.out)}
    assert bad["text.jpg"] == "decode" and bad["gone.jpg"] == "read" and sorted(bad.values()).count("list") == 2
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"secret" not in written
