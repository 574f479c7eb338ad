"""What FiftyOne finds in an export, as JSON; run by a Python that has it.

python tests/integration/load_in_fiftyone.py IMAGES LABELS RESULTS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fiftyone as fo
import fiftyone.utils.coco as fouc


def main() -> None:
    images, labels, results = sys.argv[1:]
    loaded = fo.Dataset.from_dir(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=images,
        labels_path=labels,
        label_types=["detections"],
        label_field={"detections": "truth", "coco_id": "coco_id"},
        include_id=True,
    )
    categories = json.loads(Path(labels).read_text())["categories"]
    fouc.add_coco_labels(loaded, "predictions", results, categories, coco_id_field="coco_id")
    places = loaded.values("predictions.detections.bounding_box")
    found = {
        "images": len(loaded),
        "truth": loaded.count_values("truth.detections.label"),
        "predictions": loaded.count_values("predictions.detections.label"),
        "confidence": loaded.sum("predictions.detections.confidence"),
        "area": sum(w * h for boxes in places for _, _, w, h in boxes or ()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
