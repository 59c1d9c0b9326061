"""What a bundle that was exported for deployment says about itself."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any


def read_metadata(model: Path) -> dict[str, Any]:
    """The `metadata.json` in a model that `python -m monai.bundle ckpt_export` wrote.

    TorchScript keeps its extra files in a folder with the name that the model had when it was written. The SDK's
    operator looks for them under the name that it has now, and when they are not there it goes on without the bundle's
    pre-processing, inferer and post-processing. Such a model is refused.

    Raises:
        ValueError: when the model carries no configuration under its present name.
    """
    wanted = [f"{model.stem}/extra/{name}.json" for name in ("inference", "metadata")]
    if not zipfile.is_zipfile(model):
        raise ValueError(f"{model} is not TorchScript; export the bundle with python -m monai.bundle ckpt_export")
    with zipfile.ZipFile(model) as archive:
        missing = [name for name in wanted if name not in archive.namelist()]
        if missing:
            raise ValueError(
                f"{model} has no {' and no '.join(missing)}: it was renamed after its export, or exported without "
                "--config_file and --meta_file; export it under the name that it shall have"
            )
        return dict(json.loads(archive.read(wanted[1])))


def takes_photographs(metadata: dict[str, Any]) -> bool:
    """Whether a model segments vessels in colour photographs; if not, it takes volumes or slices of one channel.

    Raises:
        ValueError: it takes, or gives, something else.

    Example:
        >>> image = {"num_channels": 1, "spatial_shape": [64, 64, 16]}
        >>> classes = {"0": "background", "1": "liver"}
        >>> described = {"inputs": {"image": image}, "outputs": {"pred": {"channel_def": classes}}}
        >>> takes_photographs({"network_data_format": described})
        False
    """
    described = metadata["network_data_format"]
    image, classes = described["inputs"]["image"], list(described["outputs"]["pred"]["channel_def"].values())
    channels, axes = image["num_channels"], len(image["spatial_shape"])
    if channels == 1:
        return False
    if (channels, axes, classes[1:]) == (3, 2, ["vessel"]):
        return True
    raise ValueError(
        f"the model takes {channels} channels with {axes} axes and tells apart {', '.join(map(str, classes))}; this "
        "application has series of one channel, and photographs with vessels"
    )
