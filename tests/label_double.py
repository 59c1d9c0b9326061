"""What MONAI Label does with a bundle, stated once more from its source (0.8.5): a double for tests.

It is no part of MONAI Label and shares nothing with it, so that the bundles are held to the contract where MONAI Label
is not installed; `examples/monailabel/check.py` holds them to MONAI Label itself. In order:

Segmenting. `configs/inference.json` alone is read, and `bundle_root` set. Of it are taken `network_def`,
`preprocessing`, `inferer` and `postprocessing`, and `device` is set; `SaveImaged` is left out. The weights are those of
the file in `models/` with the shortest name that ends in `.pt`: under `"model"` if that is a key, else the file as it
is; keys that do not fit are passed over in silence. The transforms are run one by one on `{"image": path}`, one image
at a time. What comes out is brought to the size of the image, and written by ITK in the format of the image, with the
type that it has and its axes reversed. Classes are named by `channel_def` of the first output, in lower case, but for
"background".

Training. `configs/train.json` alone is read. Overridden are `bundle_root`, `train#trainer#max_epochs`,
`train#dataset#data`, `device`, `train#handlers` (with a `CheckpointLoader` of `models/model.pt` in front of them, where
there is that file, which loads into `network`), and `validate#dataset#data`, unless the client asks for the bundle's.
Items have `image` and `label` and nothing else. Then `run` runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.bundle import run as run_bundle
from monai.data import partition_dataset
from monai.transforms import SaveImaged
from torch import Tensor


def labels(bundle: Path) -> dict[str, int]:
    """The names that a reader can choose from."""
    outputs = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]
    names = next(iter(outputs.values()))["channel_def"]
    return {name.lower(): int(k) for k, name in names.items() if name.lower() != "background"}


def weights_that_are_served(bundle: Path) -> Path:
    """The first of the files when sorted by the length of their names."""
    return sorted((bundle / "models").glob("*.pt"), key=lambda path: len(path.name))[0]


def segment(bundle: Path, image: Path) -> np.ndarray[Any, Any]:
    """What is written for an image."""
    config = _read(bundle, "inference.json")
    config["device"] = "cpu"
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    assert next(iter(metadata["inputs"])) == "image"
    network = config.get_parsed_content("network_def")
    content = torch.load(weights_that_are_served(bundle), map_location="cpu", weights_only=True)
    missing = network.load_state_dict(content.get("model", content), strict=False)
    assert not missing.missing_keys, "MONAI Label would serve random weights without a word"
    assert not missing.unexpected_keys
    item: dict[str, Any] = {"image": str(image), "model": bundle.name, "device": "cpu"}
    for step in config.get_parsed_content("preprocessing").transforms:
        item = step(item)
    with torch.no_grad():
        item["pred"] = config.get_parsed_content("inferer")(item["image"][None], network.eval())[0]
    for step in config.get_parsed_content("postprocessing").transforms:
        if not isinstance(step, SaveImaged):
            item = step(item)
    return _written(item["pred"], [int(n) for n in item["image"].meta["spatial_shape"]], image.suffix)


def _written(pred: Tensor, spatial_shape: list[int], suffix: str) -> np.ndarray[Any, Any]:
    """The voxels of the file: ITK gets the array with its axes reversed, less the first of four if that is 1."""
    assert isinstance(pred, Tensor)
    if suffix == ".png":
        assert pred.dtype == torch.uint8, "a PNG cannot be written of anything else"
        assert pred.ndim == 2, "a third axis would be taken for slices, of which a PNG holds one"
    else:
        assert (pred.ndim, len(pred)) == (4, 1)
        pred = pred[0]
    assert list(pred.shape) == spatial_shape[: pred.ndim], "MONAI Label would resize it by the nearest voxel"
    return pred.numpy().T


def train(
    bundle: Path,
    datalist: Sequence[dict[str, str]],
    max_epochs: int = 1,
    val_split: float = 0.2,
    pretrained: bool = True,
) -> None:
    """What a client's request to train comes to, without GPUs."""
    assert all(set(item) == {"image", "label"} for item in datalist)
    training, validation = list(datalist), None if val_split < 0 else []
    if val_split > 0:
        training, validation = partition_dataset(datalist, ratios=[1 - val_split, val_split], shuffle=False)
    handlers = _read(bundle, "train.json")["train"]["handlers"]
    weights = bundle / "models" / "model.pt"
    if pretrained and weights.is_file() and "CheckpointLoader" not in [one["_target_"] for one in handlers]:
        loads = {"load_path": str(weights), "load_dict": {"model": "$@network"}, "strict": False}
        handlers = [{"_target_": "CheckpointLoader", **loads}, *handlers]
    overrides = {
        "bundle_root": str(bundle),
        "train#trainer#max_epochs": max_epochs,
        "train#dataset#data": training,
        "device": "cpu",
        "train#handlers": handlers,
    } | ({} if validation is None else {"validate#dataset#data": validation})
    run_bundle(
        run_id="run",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "train.json"),
        **overrides,
    )


def _read(bundle: Path, name: str) -> ConfigParser:
    config = ConfigParser()
    config.read_config(bundle / "configs" / name)
    config["bundle_root"] = str(bundle)
    return config
