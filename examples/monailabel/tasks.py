"""What MONAI Label's own tasks make of the bundles that `check.py` laid out. Runs in MONAI Label's environment.

    python tasks.py FOLDER

`FOLDER/NAME` holds `model/NAME` (the bundle as it is served), `studies` (images, and labels of a reader in
`studies/labels/final`), and `unseen` (images to segment). What came of it goes to `FOLDER/report.json`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision_operators  # noqa: F401
from monailabel.datastore.local import LocalDatastore
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask

REQUEST = {"device": "cpu", "max_epochs": 2, "val_split": 0.34, "multi_gpu": False}
"""What a client sends, beside the name of the model."""


def main(folder: Path) -> None:
    """Serve, train and serve again, bundle by bundle."""
    report: dict[str, Any] = {name: version(name) for name in ("monailabel", "monai", "torch", "numpy")}
    report["bundles"] = {}
    for place in sorted(path.parent for path in folder.glob("*/model")):
        try:
            report["bundles"][place.name] = _try(place)
        except Exception:
            report["bundles"][place.name] = {"error": traceback.format_exc()}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def _try(place: Path) -> dict[str, Any]:
    bundle = place / "model" / place.name
    weights = bundle / "models" / "model.pt"
    found: dict[str, Any] = {"before": _infer(bundle, place, "before"), "weights": [_checksum(weights)]}
    task = BundleTrainTask(str(bundle), {})
    found["valid"] = task.is_valid()
    store = LocalDatastore(str(place / "studies"), auto_reload=False, extensions=["*.nii.gz", "*.png"])
    found["datalist"] = [Path(item["label"]).name for item in store.datalist()]
    task(REQUEST | {"model": place.name}, store)
    found["weights"].append(_checksum(weights))
    state = torch.load(weights, map_location="cpu", weights_only=True)
    found["finite"] = all(bool(value.isfinite().all()) for value in state.values())
    found["epochs"] = [row["epoch"] for row in json.loads((bundle / "output/metrics.json").read_text())["validation"]]
    found["after"] = _infer(bundle, place, "after")
    return found


def _infer(bundle: Path, place: Path, when: str) -> dict[str, Any]:
    """Segment what nobody drew; the files go to `FOLDER/NAME/when`."""
    task = BundleInferTask(str(bundle), {}, load_strict=True)
    (place / when).mkdir()
    for image in sorted((place / "unseen").iterdir()):
        written, answer = task({"model": place.name, "image": str(image), "device": "cpu"})
        shutil.move(written, place / when / image.name)
    return {"info": {key: task.info()[key] for key in ("type", "labels", "dimension", "version")}} | {
        "label_names": answer["label_names"]
    }


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
