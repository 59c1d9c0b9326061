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
