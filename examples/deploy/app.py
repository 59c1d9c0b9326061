"""A bundle in MONAI Deploy: `python app.py -i FOLDER -o OUT -m model.ts`.

A model of colour fundus photographs gives a PNG of the vessels per photograph, and of one in DICOM a DICOM segmentation
as well. Any other model takes CT and MR series in DICOM, and gives a DICOM segmentation of each. See README.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from exported import read_metadata, takes_photographs
from holoscan.conditions import BooleanCondition, CountCondition
from monai.deploy.core import AppContext, Application, IOType
from monai.deploy.core.domain import Image
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator
from operators import PICTURES, MaskOperator, PhotographOperator, PictureOperator, SegmentationOperator
from photographs import PHOTOGRAPH_CLASSES

RULES = {
    "selections": [
        {
            "name": "photographs",
            "conditions": {
                "SOPClassUID": "^(" + "|".join(uid.replace(".", r"\.") for uid in PHOTOGRAPH_CLASSES) + ")$"
            },
        }
    ]
}
"""Which series are segmented: those of photographs."""


class BundleApplication(Application):
    """Photographs or series -> the bundle's pre-processing, network and post-processing -> masks.

    Args:
        context: input and output folder, and the model.
    """

    def __init__(self, context: AppContext, *args: Any, **kwargs: Any) -> None:
        self.context = context
        self.refused: list[str] = []
        super().__init__(*args, **kwargs)

    def compose(self) -> None:
        """Put the operators together: which ones depends on the model, and on what is in the input folder."""
        source, output = Path(self.context.input_path), Path(self.context.output_path)
        model = Path(self.context.models.get().path)
        metadata = read_metadata(model)
        photographs = takes_photographs(metadata)
        output.mkdir(parents=True, exist_ok=True)
        infer = MonaiBundleInferenceOperator(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=self.context,
            bundle_path=model,
            name="infer",
        )
        written = {"folder": output, "metadata": metadata, "weights": hashlib.sha256(model.read_bytes()).hexdigest()}
        if photographs:
            self._compose_photographs(source, infer, written)
        else:
            self._compose_series(source, infer, written)

    def _compose_photographs(self, source: Path, infer: MonaiBundleInferenceOperator, written: dict[str, Any]) -> None:
        write = MaskOperator(self, folder=written["folder"], name="write")
        self.add_flow(infer, write, {("pred", "pred")})
        pictures = find_pictures(source)
        if pictures:
            read: PictureOperator | PhotographOperator = PictureOperator(
                self, CountCondition(self, len(pictures)), items=pictures, name="read"
            )
        else:
            segmentation = SegmentationOperator(self, name="segmentation", **written)
            self.add_flow(write, segmentation, {("mask", "mask")})
            read = self._read_dicom(source)
            self.add_flow(read, segmentation, {("header", "header")})
        self.add_flow(read, infer, {("image", "image")})
        self.refused = read.refused

    def _compose_series(self, source: Path, infer: MonaiBundleInferenceOperator, written: dict[str, Any]) -> None:
        from series import find_series  # these need the package
        from series_operators import SeriesOperator, SeriesSegmentationOperator

        series = find_series(source)
        read = SeriesOperator(self, CountCondition(self, len(series)), items=series.items(), name="read")
        self.refused = read.refused
        write = SeriesSegmentationOperator(self, series=series, name="write", **written)
        self.add_flow(read, infer, {("image", "image")})
        self.add_flow(infer, write, {("pred", "pred")})

    def _read_dicom(self, source: Path) -> PhotographOperator:
        load = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=source, must_load=False, name="load")
        select = DICOMSeriesSelectorOperator(self, rules=json.dumps(RULES), all_matched=True, name="select")
        left = BooleanCondition(self, enable_tick=True, name="photographs_left")
        read = PhotographOperator(self, left, name="read")
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, read, {("study_selected_series_list", "selected")})
        return read


def find_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder, sorted by name.

    Raises:
        ValueError: when two of them would share one mask.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if len({path.stem for path in found}) < len(found):
        raise ValueError("two photographs differ in their ending only and would share one mask; rename one")
    return found


class WithoutPaths(logging.Filter):
    """The SDK's loader of DICOM names the files that it leaves out; file names may be people's names."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say the same without the name."""
        record.msg, record.args = (
            "a file in the input folder was left out: it is no DICOM instance that can be used",
            (),
        )
        return True


def keep_names_out_of_logs() -> None:
    """Nothing that identifies a patient is printed at the default level.

    The SDK logs descriptions of studies at level INFO. pydicom and highdicom warn of values that are not valid, and
    quote them: names and dates of birth among them.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.ERROR)  # it logs what it warns of
    loader = f"{DICOMDataLoaderOperator.__module__}.{DICOMDataLoaderOperator.__name__}"
    logging.getLogger(loader).addFilter(WithoutPaths())


def main(argv: list[str]) -> None:
    """Run the application with the SDK's command line arguments; warnings and errors are logged unless it says more."""
    keep_names_out_of_logs()
    os.environ.setdefault("HOLOSCAN_LOG_LEVEL", "WARN")
    context = Application.init_app_context([argv[0], "--log-level", "WARN", *argv[1:]])
    if context.models is None:
        raise SystemExit(f"error: no TorchScript model at {context.model_path}; pass one that was exported as --model")
    application = BundleApplication(context)
    try:
        application.run()
    except ValueError as error:  # what is wrong with the input, in one sentence
        raise SystemExit(f"error: {error}") from None
    if application.refused:
        raise SystemExit("\n".join(f"error: {sentence}" for sentence in application.refused))


if __name__ == "__main__":
    main(sys.argv)
