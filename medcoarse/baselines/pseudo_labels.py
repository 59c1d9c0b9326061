"""Label maps that a first stage makes of all training images before training, kept on disk, and learned from as masks.

Training on them has the network, loss (cross-entropy and Dice), steps and augmentation of training on masks.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor

from medcoarse.confusion import Annotations
from medcoarse.files import load_weights, write_atomically

logger = logging.getLogger(__name__)

Stage = Callable[[Sequence[Tensor], Sequence[Annotations]], list[Tensor]]
"""Images ``(C, *S)`` and what is known of each, without a batch axis, to label maps ``(1, *S)``."""


def prepare_pseudo_labels(dataset: Any, stage: Stage, directory: str | Path) -> dict[str, Tensor]:
    """The label maps that a stage makes of a data set, made once for each setting.

    The file's name has the stage with all its parameters, and a checksum of what it was given: other drawings, another
    seed or another image make another file.

    Args:
        dataset: items of ``dataset.data`` with an image file, transformed into an image and what is known of it.
        stage: a dataclass, whose ``repr`` names its parameters.
        directory: where the file is looked for, and written atomically.

    Returns:
        uint8 label maps ``(1, *S)`` by image file.

    Example:
        >>> import tempfile
        >>> from monai.data import Dataset
        >>> draw = lambda item: {"image": torch.zeros(1, 3), "positive": torch.tensor([[0, 1, 255]])}
        >>> stage = lambda images, known: [one.positive for one in known]
        >>> prepare_pseudo_labels(Dataset([{"image": "a.png"}], draw), stage, tempfile.mkdtemp())
        {'a.png': tensor([[  0,   1, 255]], dtype=torch.uint8)}
    """
    names, images, known, checksum = [], [], [], 0
    for number, entry in enumerate(dataset.data):
        item = dataset[number]
        drawn = {key: _plain(item[key]) for key in ("positive", "negative", "label") if key in item}
        images.append(_plain(item["image"]).float())
        known.append(Annotations(**drawn))
        names.append(str(entry["image"]))
        for value in (images[-1], *drawn.values()):
            checksum = zlib.crc32(value.contiguous().numpy().tobytes(), checksum)
    path = Path(directory) / f"{_file_name(stage)}_{checksum:08x}.pt"
    if not path.is_file():
        logger.info("%s makes label maps of %d images: %s", type(stage).__name__, len(images), path)
        maps = [label.to(torch.uint8) for label in stage(images, known)]
        write_atomically(path, lambda file: torch.save(dict(zip(names, maps, strict=True)), file))
    labels: dict[str, Tensor] = load_weights(path)
    return labels


def _plain(value: Any) -> Tensor:
    return torch.as_tensor(value).as_subclass(Tensor).cpu()


def _file_name(stage: Stage) -> str:
    """``Stage(size=3, rate=0.1)`` to ``Stage_size=3_rate=0.1``."""
    fields = getattr(stage, "__dataclass_fields__", {})
    return "_".join([type(stage).__name__, *(f"{name}={getattr(stage, name)}" for name in fields)])


class PseudoLabeld(Transform):
    """Give an item the label map that was made of it.

    Args:
        labels: by image file, :func:`prepare_pseudo_labels`.
        source_key: of the image file, copied before the image was read.
        label_key: where the label map goes.

    Example:
        >>> PseudoLabeld({"a.png": torch.tensor([[1]])})({"source": "a.png"})["label"]
        tensor([[1]])
    """

    def __init__(
        self, labels: Mapping[str, Tensor], source_key: Hashable = "source", label_key: Hashable = "label"
    ) -> None:
        self.labels, self.source_key, self.label_key = labels, source_key, label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its label map."""
        name = str(data[self.source_key])
        if name not in self.labels:
            raise KeyError(f"no label map was made of {name}")
        return {**data, self.label_key: self.labels[name].clone()}
