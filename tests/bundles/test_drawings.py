"""The bundle of one's own drawings, on files as people have them: volumes and slices, with labels or without."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image

from medcoarse.synthetic.pelvis import CLASS_NAMES
from medcoarse.synthetic.volumes import write_pelvis_dataset
from tests.bundles.conftest import SMALL, Bundle
from tests.bundles.test_bundles import (  # what holds for this bundle as well, on its own data
    test_a_run_resumed_at_an_epoch_boundary_is_bit_identical,
    test_evaluation_without_weights_says_so,
    test_files_that_the_model_zoo_asks_for,
    test_inference_needs_only_stock_monai,
    test_metadata_follow_the_schema,
    test_network_takes_and_gives_what_the_metadata_say,
    test_root_files_are_copies_of_configs,
    test_the_annotators_learn_alone_in_the_end,
    test_two_processes_train_and_gather_their_scores,
)

__all__ = [
    "test_a_run_resumed_at_an_epoch_boundary_is_bit_identical",
    "test_evaluation_without_weights_says_so",
    "test_files_that_the_model_zoo_asks_for",
    "test_inference_needs_only_stock_monai",
    "test_metadata_follow_the_schema",
    "test_network_takes_and_gives_what_the_metadata_say",
    "test_root_files_are_copies_of_configs",
    "test_the_annotators_learn_alone_in_the_end",
    "test_two_processes_train_and_gather_their_scores",
]

NAMES = ("background", "peripheral", "central")
UNEQUAL = {"spacing": [3.0, 3.0, 5.0]}
"""Not the spacing of any volume."""


@dataclass(frozen=True)
class DrawingsBundle(Bundle):
    """A bundle that takes a datalist in place of a folder."""

    def places(self, output: Path) -> dict[str, str]:
        own = {"output_dir": str(output), "ckpt_dir": str(output / "models")}
        return {"datalist": str(self.data / "datalist.json"), **own}

    @property
    def small_network(self) -> dict[str, Any]:
        known = ("patch_size", "network", "spacing", "spatial_dims", "in_channels", "num_classes", "intensity")
        return {name: value for name, value in self.small.items() if name.startswith(known)}


def bundle_of(data: Path, **small: Any) -> DrawingsBundle:
    size = {"patch_size": [16, 16, 8], "patches_per_epoch": 4}
    return DrawingsBundle("drawings", data, SMALL | size | small, "peripheral", (0, 0), "validation")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> DrawingsBundle:
    data = write_pelvis_dataset(tmp_path_factory.mktemp("data") / "mri", 2, 1, 2, (28, 28, 12), (3.2, 3.2, 5.0))
    return bundle_of(data, **UNEQUAL)


@pytest.fixture(scope="module")
def trained(bundle, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    bundle.train(output)
    return output


def load(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def listed(folder: Path, **sections: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder


def without(items: list[dict[str, Any]], data: Path, *keys: str) -> list[dict[str, Any]]:
    """Items elsewhere that lack some keys."""
    kept = ({"image", "drawing", "label"} - set(keys)) & set(items[0])
    return [{key: str(data / item[key]) for key in kept} for item in items]


def test_training_leaves_weights_and_scores(bundle, trained):
    weights = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert not any(name.startswith(("annotator", "segmenter")) for name in weights)
    content = bundle.metrics(trained)
    assert (content["facts"]["supervision"], content["facts"]["validated_on"]) == ("strokes", "validation")
    assert [row["epoch"] for row in content["validation"]] == [1, 2]
    own = {f"{name}_dice" for name in ("mean", *NAMES[1:])}
    assert set(content["validation"][-1]) == own | {"drawn_agreement", "epoch", "seconds"}
    assert (trained / "figures" / "epoch_0002.png").is_file()


def test_background_is_spread_for_training_alone(bundle, tmp_path):
    """What was drawn stays as it is; what is scored and reviewed is what was drawn."""
    strokes, undrawn = {}, {}
    for ratio in (0, 1.0):
        drawings, spreading, data = bundle.parsed(
            tmp_path, "train#drawings", "spreading", "train#dataset", spread_background=ratio, spacing=None
        )
        items = [item["positive"] for item in drawings]
        strokes[ratio] = np.concatenate([np.asarray(one).ravel() for one in items])
        undrawn[ratio] = np.mean([np.mean(np.asarray(patch["positive"]) == 255) for (patch,) in data])
        for one in items:
            spread = Compose(spreading)({"positive": one})["positive"] if ratio else one
            added = np.asarray(spread != one)
            assert set(np.unique(one[added])) <= {255}
            assert set(np.unique(spread[added])) <= {0}
            assert added.any() == bool(ratio)
    assert np.array_equal(strokes[0], strokes[1.0])
    assert undrawn[1.0] < 0.7 * undrawn[0]


def test_only_drawn_volumes_are_known_to_be_spread(bundle, tmp_path):
    """Their habit is known; of one's own drawings it has to be said, and MONAI Label's are never finished."""
    parser = ConfigParser()
    parser.read_config([str(bundle.root / "configs" / name) for name in ("train.json", "monailabel.json")])
    assert parser.get_parsed_content("spread_background") == 0
    parser.read_config(str(bundle.root / "configs" / "train.json"))
    assert parser.get_parsed_content("spread_background") == 0.3
    assert bundle.parsed(tmp_path, "spread_background") == 0
    assert bundle.parsed(tmp_path, "spreading", spread_background=0.5, supervision="dense") == []


def test_strokes_that_background_would_be_spread_over_are_warned_of(bundle, tmp_path, capfd):
    for ratio, warned in ((1, True), (0.05, False)):
        bundle.parsed(tmp_path, "data", spread_background=ratio)
        said = capfd.readouterr()
        assert ("would be called background" in said.out + said.err) == warned


def test_evaluation_and_inference_write_the_same_on_the_grid_of_the_image(bundle, trained, tmp_path):
    """Although the network sees voxels of another size; scored voxel by voxel on the grid of the label."""
    table = bundle.evaluate(trained)
    arguments = {"dataset_dir": str(bundle.data / "cases"), "ckpt_dir": str(trained / "models")}
    bundle.run("inference.json", kind="infer", output_dir=str(tmp_path), **bundle.small_network, **arguments)
    sums = np.zeros((2, len(NAMES)))
    shapes = set()
    for item in bundle.items("test"):
        image, label = nibabel.load(bundle.data / item["image"]), load(bundle.data / item["label"])
        name = Path(item["image"]).parent.name
        evaluated, inferred = (
            nibabel.load(folder / name / "t2_seg.nii.gz") for folder in (trained / "predictions", tmp_path)
        )
        for found in (evaluated, inferred):
            assert found.shape == image.shape
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
        predicted = np.asanyarray(evaluated.dataobj)
        assert np.array_equal(predicted, np.asanyarray(inferred.dataobj))
        shapes.add(image.shape)
        for k in range(len(NAMES)):
            sums[:, k] += 2 * ((predicted == k) & (label == k)).sum(), (predicted == k).sum() + (label == k).sum()
    for name, (both, either) in zip(NAMES, sums.T, strict=True):
        assert table["dataset"][f"dice_{name}"] == pytest.approx(both / either, abs=1e-6)
    assert sums[0, 1:].sum() > 0, "something was found"
    assert len(table["surfaces"]["images"]) == len(table["images"]) == 2
    assert table["surfaces"]["image"]["surface_mm_peripheral"] > 0


def test_the_small_data_differ_in_size_and_spacing(bundle):
    files = [
        nibabel.load(bundle.data / item["image"]) for section in ("training", "test") for item in bundle.items(section)
    ]
    assert len({file.shape for file in files}) > 1 < len({file.header.get_zooms() for file in files})


def test_drawings_alone_give_an_agreement_and_no_dice(bundle, tmp_path):
    """Counted by hand: of the voxels drawn as a class, the share predicted to be it, mean over the classes."""
    sections = {name: without(bundle.items(name), bundle.data, "label") for name in ("training", "validation")}
    own = bundle_of(listed(tmp_path / "data", **sections))
    own.train(tmp_path, max_epochs=1, warmup_epochs=0)
    row = own.metrics(tmp_path)["validation"][-1]
    assert set(row) == {"drawn_agreement", "epoch", "seconds"}
    built = own.workflow("train.json", **(own.small | own.places(tmp_path)))
    built.initialize()
    network, inferer = (built.parser.get_parsed_content(key) for key in ("network", "validate#inferer"))
    network.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))
    (item,) = built.parser.get_parsed_content("validate#dataset")
    with torch.no_grad():
        predicted = inferer(item["image"].as_tensor()[None], network.eval())[0].argmax(0)
    drawn = item["positive"][0]
    shares = [float((predicted[drawn == k] == k).float().mean()) for k in range(3)]
    assert row["drawn_agreement"] == pytest.approx(np.mean(shares), abs=1e-6)
    with pytest.raises(SystemExit, match="no item of the validation section has a label"):
        own.run("train.json", "evaluate.json", **own.small, **own.places(tmp_path))


def test_one_drawn_image_is_enough(bundle, tmp_path):
    """Nothing to validate on: it says how well the drawing itself was learned, and says so."""
    own = bundle_of(listed(tmp_path / "data", training=without(bundle.items("training")[:1], bundle.data, "label")))
    own.train(tmp_path, max_epochs=1, warmup_epochs=0)
    content = own.metrics(tmp_path)
    assert content["facts"]["validated_on"] == "training"
    assert "drawn_agreement" in content["validation"][-1]


def test_patches_are_centred_on_every_class_and_on_what_nobody_drew(bundle, tmp_path):
    """Each a quarter, but for patches moved in at the border, and those turned."""
    small = {"patch_size": [8, 8, 4], "patches_per_epoch": 96, "spacing": None, "flip_axes": []}
    data = bundle.parsed(tmp_path, "train#dataset", **small)
    centres = np.array([int(part["positive"][0, 4, 4, 2]) for item in data for part in item])
    shares = [float((centres == value).mean()) for value in (0, 1, 2, 255)]
    assert min(shares) > 0.1
    drawn = [float((load(bundle.data / item["drawing"]) == 2).mean()) for item in bundle.items("training")]
    assert max(drawn) < 0.01, "which no patch taken anywhere would have found"


def test_what_comes_from_beyond_the_image_is_unlabeled(bundle, tmp_path):
    """Also when patches are turned: MONAI would fill them with 0, which is background."""
    data = bundle.parsed(tmp_path, "train#dataset", patch_size=[40, 40, 16], patches_per_epoch=24, spacing=None)
    drawn = load(bundle.data / bundle.items("training")[0]["drawing"])
    most = (drawn == 3).sum() * 1.6  # strokes drawn as background, enlarged by a tenth along two axes, and some
    for item in data:
        for part in item:
            assert part["positive"].dtype == torch.uint8
            assert set(part["positive"].unique().tolist()) <= {0, 1, 2, 255}
            assert 0 < (part["positive"] == 0).sum() < most


@pytest.mark.parametrize("kind", ["png", "nifti"])
def test_pictures_and_slices(tmp_path, kind):
    """Two classes, colour or grey, different sizes, MONAI Label's scribbles: 0 undrawn, 2 not it, 3 it."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    items = []
    for number, (width, height) in enumerate([(40, 36), (33, 50)]):
        label = np.zeros((width, height), np.uint8)
        label[8:24, 10:20] = 1
        drawing = np.zeros_like(label)
        drawing[12:20, 14], drawing[2:30, 4] = 3, 2
        image = (120 * label[..., None] + rng.integers(0, 80, (width, height, 3))).astype(np.uint8)
        names = [f"{what}{number}" for what in ("image", "drawing", "label")]
        if kind == "png":
            for name, array in zip(names, (image, drawing, label), strict=True):
                Image.fromarray(np.ascontiguousarray(array.swapaxes(0, 1))).save(folder / f"{name}.png")
            files = [f"{name}.png" for name in names]
        else:
            for name, array in zip(names, (image[..., 0], drawing, label), strict=True):
                one = nibabel.Nifti1Image(array[..., None], np.diag([0.7, 0.7, 3.0, 1.0]))
                nibabel.save(one, folder / f"{name}.nii.gz")
            files = [f"{name}.nii.gz" for name in names]
        items.append(dict(zip(("image", "drawing", "label"), files, strict=True)))
    own = bundle_of(
        listed(folder, training=items),
        spatial_dims=2, in_channels=3 if kind == "png" else 1, num_classes=2, class_names=["background", "thing"],
        mapping="monailabel_scribbles", patch_size=[32, 32], intensity="unit",
        **({} if kind == "png" else {"spacing": [1.0, 1.0]}),
    )  # fmt: skip
    own.train(tmp_path)
    item = own.parsed(tmp_path, "validate#dataset")[1]
    assert item["positive"].ndim == item["label"].ndim == 3
    assert isinstance(item["image"], MetaTensor)
    if kind == "png":
        assert (item["positive"] == 1).sum() == 8
        assert np.array_equal(np.asarray(item["label"][0]).sum(), 16 * 10)
    arguments = {"datalist": [str(folder / one["image"]) for one in items], "ckpt_dir": str(tmp_path / "models")}
    own.run("inference.json", kind="infer", output_dir=str(tmp_path / "out"), **own.small_network, **arguments)
    for one in items:
        if kind == "png":
            name = one["image"].replace(".png", "_seg.png")
            assert Image.open(tmp_path / "out" / name).size == Image.open(folder / one["image"]).size
        else:
            found, image = (
                nibabel.load(path)
                for path in (tmp_path / "out" / one["image"].replace(".nii", "_seg.nii"), folder / one["image"])
            )
            assert (*found.shape, 1)[:3] == image.shape  # MONAI leaves the axis of length 1 out
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
    table = own.evaluate(tmp_path)
    assert len(table["images"]) == 2


def test_nothing_that_stands_against_training_comes_as_a_traceback(bundle, tmp_path):
    built = bundle.workflow("train.json", **(bundle.small | bundle.places(tmp_path) | {"mapping": "unlabeled_255"}))
    with pytest.raises(SystemExit, match=r"'3' \(\d+ voxels\) are drawn, but not in the mapping"):
        built.initialize()
    built = bundle.workflow("train.json", **(bundle.small | bundle.places(tmp_path) | {"patch_size": [15, 16, 8]}))
    with pytest.raises(SystemExit, match="must be multiples of"):
        built.initialize()


def test_a_drawing_on_another_grid_is_moved_only_when_asked(bundle, tmp_path):
    content = json.loads((bundle.data / "datalist.json").read_text())
    items = without(content["training"], bundle.data)
    strokes = nibabel.load(items[0]["drawing"])
    items[0]["drawing"] = str(tmp_path / "shifted.nii.gz")
    shifted = nibabel.Nifti1Image(np.asarray(strokes.dataobj), strokes.affine + 7 * np.eye(4, k=3))
    nibabel.save(shifted, items[0]["drawing"])
    own = bundle_of(listed(tmp_path / "own", training=items))
    with pytest.raises(SystemExit, match=r"lies on another grid.*--resample True"):
        own.workflow("train.json", **(own.small | own.places(tmp_path))).initialize()
    drawn = own.parsed(tmp_path, "train#drawings", resample=True)[0]["positive"]
    assert 0 < (drawn != 255).sum() < np.count_nonzero(strokes.dataobj)


def test_properties(bundle, trained, tmp_path):
    built = bundle.workflow("train.json", **bundle.small, **bundle.places(tmp_path))
    built.initialize()
    assert not built.check_properties()
    arguments = {"dataset_dir": str(bundle.data), "ckpt_dir": str(trained / "models")}
    inference = bundle.workflow("inference.json", kind="infer", **arguments)
    inference.initialize()
    assert not inference.check_properties()


@pytest.mark.parametrize(("where", "message"), [("dataset_dir", "no file like"), ("ckpt_dir", "no weights at")])
def test_inference_says_what_is_missing(bundle, trained, tmp_path, where, message):
    arguments = {"dataset_dir": str(bundle.data), "ckpt_dir": str(trained / "models")}
    built = bundle.workflow("inference.json", kind="infer", **(arguments | {where: str(tmp_path / "empty")}))
    with pytest.raises(SystemExit, match=message):
        built.initialize()


def test_files_are_read_by_one_thread(bundle):
    """MONAI's NIfTI reader keeps the file names of its last call: of lists that two threads read files get lost."""
    config = json.loads((bundle.root / "configs" / "train.json").read_text())
    assert {config[section]["dataset"]["num_workers"] for section in ("train", "validate")} == {1}


def test_class_names_are_those_of_the_drawn_volumes(bundle):
    config = json.loads((bundle.root / "configs" / "train.json").read_text())
    assert [name.split()[0] for name in CLASS_NAMES] == config["class_names"]


MASKS_OF_STROKES = {"supervision": "strokes", "drawn_key": "label"}
"""For overlays of methods that make masks of strokes: the drawings are verified, and no mask has to be there."""


@pytest.mark.parametrize("method", ["gated_crf", "random_walker", "lazy_snapping", "scribblesup"])
def test_other_methods_learn_from_strokes_on_volumes(bundle, tmp_path, method):
    """Configurations written for pictures, over volumes of three classes for which nobody made masks."""
    folder = listed(tmp_path / "data", training=without(bundle.items("training"), bundle.data, "label"))
    drawn = bundle_of(folder, **UNEQUAL)
    own = {"loss#radius": 1} if method == "gated_crf" else MASKS_OF_STROKES
    configs = ("train.json", f"../../mnist/configs/{method}.json")
    options = drawn.small | {"warmup_epochs": "@max_epochs"} | own
    options |= {"cut_epochs": [2]} if method == "scribblesup" else {}
    built = drawn.run(*configs, **options, **drawn.places(tmp_path / "run"))
    assert [row["epoch"] for row in drawn.metrics(tmp_path / "run")["validation"]] == [1, 2], "no epochs of annotators"
    loss, data = (built.parser.get_parsed_content(key) for key in ("loss", "train#dataset"))
    if method == "gated_crf":
        assert loss.parts["crf"] > 0
        return
    assert drawn.metrics(tmp_path / "run")["facts"]["method"] == method
    assert set(loss.parts) == {"dense", "dense_dice"}, "as from masks"
    drawings = built.parser.get_parsed_content("train#drawings")
    masks = built.parser.get_parsed_content("masks").maps if method == "scribblesup" else {}
    for number, item in enumerate(drawings):
        made = masks[number] if masks else built.parser.get_parsed_content("expansion")(item)["label"]
        known = torch.as_tensor(item["positive"]) != 255
        assert torch.equal(torch.as_tensor(made)[known], torch.as_tensor(item["positive"])[known])
        assert (torch.as_tensor(made) != 255).float().mean() > 0.9 > known.float().mean(), "of a few strokes a mask"
    (seen,) = data[0]  # patches of one volume
    assert set(seen) == {"image", "label"}
    assert (torch.as_tensor(seen["label"]) < 3).any()


@pytest.mark.parametrize(
    ("method", "own", "parts"),
    [
        ("dmpls", {}, {"drawn nll", "drawn dice", "pseudo"}),
        ("cyclemix", {}, {"drawn nll", "drawn dice", "mixed", "integrity", "consistency"}),
        ("coarsesup", {}, {"posterior nll", "posterior prior", "posterior entropy", "soft nll", "dice"}),
        ("dmsps", MASKS_OF_STROKES, {"label nll", "label dice", "pseudo"}),
        ("boxsup", MASKS_OF_STROKES, {"label nll", "label dice"}),
    ],
)
def test_methods_with_losses_of_their_own_learn_from_strokes_on_volumes(bundle, tmp_path, method, own, parts):
    folder = listed(tmp_path / "data", training=without(bundle.items("training"), bundle.data, "label"))
    drawn = bundle_of(folder, **UNEQUAL)
    configs = ("train.json", f"../../mnist/configs/{method}.json")
    built = drawn.run(*configs, **drawn.small, **own, **drawn.places(tmp_path / "run"))
    assert [row["epoch"] for row in drawn.metrics(tmp_path / "run")["validation"]] == [1, 2]
    loss = built.parser.get_parsed_content("loss")
    assert set(loss.parts) == parts
    assert all(torch.isfinite(part) for part in loss.parts.values())
    if own:  # label maps were made of every volume, and kept where drawings say nothing else
        maps = built.parser.get_parsed_content("drawn_labels").maps
        assert sorted(maps) == list(range(len(drawn.items("training"))))
        assert all(set(np.unique(one)) <= {0, 1, 2, 255} for one in maps.values())


def test_resumed_scribblesup_on_volumes_keeps_its_masks(bundle, tmp_path):
    configs = ("train.json", "../../mnist/configs/scribblesup.json")
    options = bundle.small | MASKS_OF_STROKES | {"warmup_epochs": "@max_epochs", "cut_epochs": [1]}
    states = []
    for epochs in (1, 2):
        bundle.run(*configs, **options | {"max_epochs": epochs}, **bundle.places(tmp_path), resume=epochs > 1)
        state = torch.load(tmp_path / "models" / "full.pt", weights_only=True)
        states.append(state["scribblesup"]["labels"])
    assert len(states[0]) == len(bundle.items("training"))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
