"""Drawings of several people, kept apart from `medcoarse train` to its reports; and reports of cases."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export

from medcoarse.bundle_files import serve
from medcoarse.cli.main import main
from medcoarse.cli.report import _without_training
from medcoarse.networks import AnnotatorHeads
from tests import label_double
from tests.bundles.commands import refused, text
from tests.cases_folders import BACKGROUND, volume, write_volumes

BUNDLE = Path(__file__).parents[2] / "bundles" / "drawings"
DREW = {"case0": ["Ada"], "case1": ["Max"], "case2": ["Max"], "case3": ["Ada"], "case4": ["Ada"], "case5": ["Max"]}


def parted(folder: Path, drew: dict[str, list[str]]) -> Path:
    """The drawings in a folder for each person; the images and masks of everybody."""
    write_volumes(folder, len(drew))
    for case, names in drew.items():
        for name in names:
            (folder / "drawings" / name).mkdir(exist_ok=True)
            shutil.copy(folder / "drawings" / f"{case}_drawn.nii.gz", folder / "drawings" / name)
        (folder / "drawings" / f"{case}_drawn.nii.gz").unlink()
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return parted(tmp_path_factory.mktemp("volumes"), DREW)


@pytest.fixture(scope="module")
def trained(volumes) -> Path:
    words = text("train", volumes / "images", volumes / "drawings", "--output_dir", volumes / "run", "--annotators")
    assert main([*words, *text("--background", BACKGROUND, "--class_names", "box", "--epochs", 2)]) == 0
    return volumes / "run"


def test_everybody_keeps_a_network_of_their_own(trained):
    content = json.loads((trained / "configs" / "train.json").read_text())
    assert content["annotators"] == ["Ada", "Max"]
    listed = json.loads((trained / "datalist.json").read_text())
    for item in [*listed["training"], *listed["validation"]]:
        case = Path(item["image"]).name.split(".")[0]
        assert item["annotators"] == DREW[case]
        assert [Path(file).parent.name for file in item["drawing"]] == DREW[case]
    states = torch.load(trained / "models" / "full.pt", weights_only=True)["model"]
    last = [value for name, value in states.items() if name.startswith("annotator.") and name.endswith("weight")][-1]
    assert len(last) == 2 * 2 * 2, "a matrix of two classes for each of two people"


def planned(images: Path, drawings: Path, out: Path, *more: str) -> ConfigParser:
    words = ["train", images, drawings, "--output_dir", out, "--annotators", "--class_names", "box", "--plan_only"]
    assert main(text(*words, *more)) == 0
    parser = ConfigParser()
    parser.read_config(str(out / "configs" / "train.json"))
    parser["bundle_root"] = str(out)
    return parser


def test_annotators_are_fitted_longer_and_at_every_voxel(volumes, tmp_path):
    """As in the bundles with several annotators, where that was measured."""
    parser = planned(volumes / "images", volumes / "drawings", tmp_path / "run", "--background", str(BACKGROUND))
    got = parser.get_parsed_content
    assert got("annotator_epochs") == got("max_epochs") // 3
    assert got("annotator_final_rate") == pytest.approx(4 * got("learning_rate"))
    assert got("annotator_def#reduction") == [1, 1, 1]
    plan = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())
    assert f"; {got('annotator_epochs')} more epochs" in plan["reasons"]["max_epochs"]


@pytest.mark.parametrize(("folder", "fast"), [("drawings", False), ("masks", True)])
def test_annotators_learn_fast_beside_heads_for_who_drew_all_of_an_image(volumes, tmp_path, folder, fast):
    """With a few strokes of each image they would take the place of the segmenter."""
    for case, (name,) in DREW.items():
        (tmp_path / "drawings" / name).mkdir(parents=True, exist_ok=True)
        drawn = volumes / folder / (f"{case}.nii.gz" if fast else f"{name}/{case}_drawn.nii.gz")
        shutil.copy(drawn, tmp_path / "drawings" / name)
    told = ["--mapping", "dense"] if fast else ["--background", str(BACKGROUND)]
    got = planned(volumes / "images", tmp_path / "drawings", tmp_path / "run", *told).get_parsed_content
    assert got("annotator_learning_rate") == pytest.approx((1 if fast else 0.05) * got("learning_rate"))
    assert got("num_heads") == (2 if fast else 0)
    assert isinstance(got("network"), AnnotatorHeads) is fast
    plan = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())
    assert ("vote" if fast else "needs whole drawings") in plan["reasons"]["num_heads"]


def by_one_each(volumes: Path, folder: Path) -> Path:
    """Whole drawings, of one person each."""
    for case, (name,) in DREW.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(volumes / "masks" / f"{case}.nii.gz", folder / name)
    return folder


def test_heads_are_trained_reviewed_and_applied(volumes, tmp_path):
    """A head for each person who drew whole images; what is made of it is a bundle like any other."""
    words = ["train", volumes / "images", by_one_each(volumes, tmp_path / "drawings"), "--output_dir", tmp_path / "run"]
    words += ["--annotators", "--mapping", "dense", "--class_names", "box", "--epochs", 3, "--labels"]
    assert main(text(*words, volumes / "masks")) == 0
    weights = torch.load(tmp_path / "run" / "models" / "model.pt", weights_only=True)
    assert all(name.startswith(("network.", "votes")) for name in weights)
    image = nib.load(volumes / "images" / "case0.nii.gz")
    assert main(text("predict", tmp_path / "run", volumes / "images", "--output_dir", tmp_path / "seg")) == 0
    segmented = nib.load(tmp_path / "seg" / "case0.nii.gz")
    assert segmented.shape == image.shape[:3]
    assert main(text("report", tmp_path / "run")) == 0
    found = json.loads((tmp_path / "run" / "output" / "annotators.json").read_text())
    assert {"Ada", "Max"} <= set(json.dumps(found).replace('"', " ").split())
    assert (
        main(text("report", tmp_path / "run", "--cases", volumes / "images", "--output_dir", tmp_path / "cases")) == 0
    )
    configs = tmp_path / "run" / "configs"
    ckpt_export(  # what MONAI Deploy runs is the vote as well
        "network_def",
        str(tmp_path / "model.ts"),
        str(tmp_path / "run" / "models" / "model.pt"),
        str(configs / "metadata.json"),
        str(configs / "inference.json"),
    )
    inference = ConfigParser(
        ConfigParser.load_config_file(configs / "inference.json") | {"bundle_root": str(tmp_path / "run")}
    )
    network = inference.get_parsed_content("network_def")
    network.load_state_dict(weights)
    patch = torch.rand(1, 1, 16, 16, 16)
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(patch), network(patch))
    assert network(patch).shape[1] == 2


def test_heads_are_served_to_monai_label_and_learn_from_a_reader_there(volumes, tmp_path):
    """The vote of those who drew before goes on; it is what a reader sees and corrects."""
    words = ["train", volumes / "images", by_one_each(volumes, tmp_path / "drawings"), "--output_dir", tmp_path / "run"]
    assert main(text(*words, "--annotators", "--mapping", "dense", "--class_names", "box", "--epochs", 3)) == 0
    image, drawn = volumes / "images" / "case0.nii.gz", tmp_path / "case0.nii.gz"
    assert main(text("predict", tmp_path / "run", image, "--output_dir", tmp_path / "seg")) == 0
    served = serve(tmp_path / "run", tmp_path / "model", iterations_per_epoch=1, batch_size=1)
    segmented = np.asarray(nib.load(tmp_path / "seg" / "case0.nii.gz").dataobj)
    np.testing.assert_array_equal(label_double.segment(served, image).T, segmented)
    before = torch.load(served / "models" / "model.pt", weights_only=True)
    strokes = np.choose(volume(0)[2], [0, 3, 0, 2]).astype(np.uint8)
    nib.save(nib.Nifti1Image(strokes, nib.load(image).affine), drawn)
    label_double.train(served, [{"image": str(image), "label": str(drawn)}] * 2, max_epochs=1, val_split=0.5)
    after = torch.load(served / "models" / "model.pt", weights_only=True)
    assert before.keys() == after.keys()
    learned = [name for name in before if not torch.equal(before[name], after[name])]
    assert learned
    steps = max((before[name] - after[name]).abs().max().item() for name in learned)
    assert steps < 0.05  # from the weights that are served, not from new ones
    label_double.segment(served, image)


def test_who_drew_none_of_the_images_that_are_trained_on_has_no_vote(volumes, tmp_path):
    """As where `medcoarse budget` trains on a part of them."""
    drawings = by_one_each(volumes, tmp_path / "drawings")
    parser = planned(volumes / "images", drawings, tmp_path / "run", "--mapping", "dense", "--validation", "0")
    parser["num_training"] = 1
    (item,) = parser.get_parsed_content("training_items")
    votes = parser.get_parsed_content("network").votes.tolist()
    assert votes == [float(name in item["annotators"]) for name in ("Ada", "Max")]
    assert sum(votes) == 1


def test_heads_are_for_images_that_everybody_drew_too(volumes, tmp_path):
    drawings = by_one_each(volumes, tmp_path / "drawings")
    for case, name in itertools.product(DREW, ("Ada", "Max")):
        shutil.copy(volumes / "masks" / f"{case}.nii.gz", drawings / name)
    got = planned(
        volumes / "images", drawings, tmp_path / "run", "--mapping", "dense", "--validation", "0"
    ).get_parsed_content
    assert got("num_heads") == 2
    assert got("annotator_learning_rate") == got("learning_rate")


def test_heads_beside_masks(volumes, tmp_path, capfd):
    """Of three of the images; one of them has nothing else."""
    drawings, (first, *rest) = by_one_each(volumes, tmp_path / "drawings"), list(DREW)
    (drawings / DREW[first][0] / f"{first}.nii.gz").unlink()
    (tmp_path / "masks").mkdir()
    for case in (first, *rest[:2]):
        shutil.copy(volumes / "masks" / f"{case}.nii.gz", tmp_path / "masks")
    words = ["train", volumes / "images", drawings, "--annotators", "--mapping", "dense", "--class_names", "box"]
    words += ["--labels", tmp_path / "masks", "--learn_labels", "--output_dir", tmp_path / "run", "--epochs", 3]
    assert main(text(*words, "--validation", 0)) == 0
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "run" / "configs" / "train.json"))
    parser["bundle_root"] = str(tmp_path / "run")
    got = parser.get_parsed_content
    assert (got("supervision"), got("num_heads"), got("loss").warmup) == ("semi", 2, "masks")
    assert got("annotator_learning_rate") == got("learning_rate")
    assert re.search(r"epoch 3/4 .*heads=.*nll_positive=.*dense=", "".join(capfd.readouterr()))


def test_an_image_that_nobody_drew_on_says_nothing_of_heads(volumes, tmp_path):
    """Neither to the plan nor to the bundle: of six it alone would leave five sixths drawn."""
    drawings = by_one_each(volumes, tmp_path / "drawings")
    for case, (name,) in DREW.items():
        file = drawings / name / f"{case}.nii.gz"
        mask = nib.load(file)
        values = np.full(mask.shape, 255, np.uint8) if case == "case0" else np.asarray(mask.dataobj)
        nib.save(nib.Nifti1Image(values, mask.affine), file)
    told = ["--mapping", "unlabeled_255", "--validation", "0"]
    parser = planned(volumes / "images", drawings, tmp_path / "run", *told)
    assert parser["num_heads"] == 2
    bundle = ConfigParser()
    bundle.read_config(str(BUNDLE / "configs" / "train.json"))
    for key in ("annotators", "mapping", "class_names", "num_classes", "in_channels"):
        bundle[key] = parser[key]
    bundle["bundle_root"], bundle["datalist"] = str(tmp_path), str(tmp_path / "run" / "datalist.json")
    assert bundle.get_parsed_content("num_heads") == 2


def test_what_is_evaluated_has_the_heads_of_the_weights(tmp_path):
    """Whatever was drawn of the images that are looked at."""
    (tmp_path / "models").mkdir()
    for overlay, heads in itertools.product(("evaluate", "review", "case_report"), (3, 0)):
        votes = {"votes": torch.ones(heads)} if heads else {}
        torch.save({"weight": torch.ones(1)} | votes, tmp_path / "models" / "model.pt")
        bundle = ConfigParser()
        bundle.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in ("train", overlay)])
        bundle["bundle_root"] = str(tmp_path)
        assert bundle.get_parsed_content("num_heads") == heads


def test_a_plan_that_is_served_untrained_has_the_heads_that_are_trained_there(volumes, tmp_path):
    """One reader's scribbles: none. Without weights it is exported as planned, with them as they are."""
    drawings = by_one_each(volumes, tmp_path / "drawings")
    planned(volumes / "images", drawings, tmp_path / "run", "--mapping", "dense", "--validation", "0")
    served = serve(tmp_path / "run", tmp_path / "model")
    found = {}
    for weights in (False, True):
        for name in ("train", "inference"):
            parser = ConfigParser()
            parser.read_config(str(served / "configs" / f"{name}.json"))
            parser["bundle_root"] = str(served)
            found[name, weights] = parser.get_parsed_content("num_heads")
        (served / "models").mkdir(exist_ok=True)
        torch.save({"weight": torch.ones(1)}, served / "models" / "model.pt")
    assert found == {("train", False): 0, ("inference", False): 2, ("train", True): 0, ("inference", True): 0}


def test_a_list_of_ones_own_gets_the_heads_that_are_planned(volumes, tmp_path):
    """By the bundle itself, whose inference finds them in the weights."""
    drawings = by_one_each(volumes, tmp_path / "drawings")
    parser = planned(volumes / "images", drawings, tmp_path / "run", "--mapping", "dense", "--validation", "0")
    bundle = ConfigParser()
    bundle.read_config(str(BUNDLE / "configs" / "train.json"))
    sizes = ("in_channels", "num_classes", "network_def#channels", "network_def#strides")
    bundle["bundle_root"], bundle["datalist"] = str(tmp_path), str(tmp_path / "run" / "datalist.json")
    for key in ("annotators", "mapping", "class_names", "patch_size", *sizes):
        bundle[key] = parser[key]
    assert bundle.get_parsed_content("num_heads") == 2
    network = bundle.get_parsed_content("network")
    (tmp_path / "models").mkdir()
    torch.save(network.state_dict(), tmp_path / "models" / "model.pt")
    inference = ConfigParser()
    inference.read_config(str(BUNDLE / "configs" / "inference.json"))
    inference["bundle_root"] = str(tmp_path)
    for key in sizes:
        inference[key] = parser[key]
    inference.get_parsed_content("network").load_state_dict(network.state_dict())
    (tmp_path / "models" / "model.pt").unlink()
    inference.parse(reset=True)
    assert inference.get_parsed_content("num_heads") == 0


def test_what_an_earlier_version_made_is_reviewed_and_trained_on(volumes, tmp_path):
    """Its configurations ask for `one_each`."""
    parser = planned(volumes / "images", volumes / "drawings", tmp_path / "run", "--background", str(BACKGROUND))
    parser["one_each"] = (
        "$own_data.one_each(@training_items, @annotators) and own_data.drawn_ratio(@train#drawings) > 0.9"
    )
    assert parser.get_parsed_content("one_each") is False
    earlier = {"one_each": "...", "voters": "...", "other": 1}
    assert _without_training(earlier) == {"one_each": False, "voters": None}


def test_it_is_what_most_drew_that_segmentations_are_held_against(volumes, tmp_path):
    """Of three the second draws nothing, the third too much. What not all agree on would leave background alone."""
    drawings = by_one_each(volumes, tmp_path / "drawings")
    shutil.copytree(drawings / "Ada", drawings / "Eva")
    parser = planned(volumes / "images", drawings, tmp_path / "run", "--mapping", "dense", "--validation", "0")
    drew = torch.tensor([[0, 1, 1, 255], [0, 0, 0, 255], [0, 1, 0, 255]]).view(3, 4, 1, 1)
    found = parser.get_parsed_content("validate#postprocessing")({"pred": torch.rand(2, 4, 1, 1), "positive": drew})
    assert found["drawn"].flatten().tolist() == [0, 1, 0, 255]


@pytest.mark.parametrize(("drew", "weights"), [(["Ada"] * 5 + ["Max"], True), (["Ada", "Max"] * 3, False)])
def test_nobody_is_favoured_for_having_drawn_more(tmp_path, drew, weights):
    folder = parted(tmp_path / "volumes", {f"case{i}": [name] for i, name in enumerate(drew)})
    parser = planned(
        folder / "images", folder / "drawings", tmp_path / "run", "--background", BACKGROUND, "--validation", 0
    )
    items, sampler = (parser.get_parsed_content(key) for key in ("train#dataset#data", "train#sampler"))
    assert (sampler is not None) == weights
    if weights:
        shares = dict.fromkeys(("Ada", "Max"), 0.0)
        for item, weight in zip(items, sampler.weights.tolist(), strict=True):
            shares[item["annotators"][0]] += weight
        assert shares["Ada"] == pytest.approx(shares["Max"])


def test_what_lies_beyond_lines_is_not_drawn(volumes, tmp_path):
    """Nine tenths of an image may be background that was read, not drawn."""
    whole = {"positive": torch.zeros(2, 4, 4)}
    parser = planned(volumes / "images", volumes / "drawings", tmp_path, "--background", str(BACKGROUND), "--loops")
    assert parser.get_parsed_content("num_heads") == 0
    bundle = ConfigParser()
    bundle.read_config(str(BUNDLE / "configs" / "train.json"))
    for key, value in (("annotators", ["Ada", "Max"]), ("loops", True), ("train#drawings", [whole])):
        bundle[key] = value
    assert bundle.get_parsed_content("num_heads") == 0
    bundle["loops"] = False
    bundle.parse(reset=True)
    assert bundle.get_parsed_content("num_heads") == 2


def test_rare_structures_count_more_than_their_voxels(tmp_path, capfd):
    """Of class 5 they drew far more than of class 1."""
    folder = write_volumes(tmp_path / "data", 3)
    for number in range(3):
        path = folder / "drawings" / f"case{number}_drawn.nii.gz"
        drawing = nib.load(path)
        values = np.asarray(drawing.dataobj).copy()
        values[-4:, 2:20] = 5
        nib.save(nib.Nifti1Image(values, drawing.affine), path)
    for name in ("Ada", "Max"):
        shutil.copytree(folder / "drawings", folder / "people" / name)
    words = text("train", folder / "images", folder / "people", "--annotators", "--background", BACKGROUND)
    assert main([*words, *text("--output_dir", tmp_path / "run", "--plan_only")]) == 0
    assert "loss#balance 0.5: of one structure" in capfd.readouterr().out
    assert json.loads((tmp_path / "run" / "configs" / "train.json").read_text())["loss"]["balance"] == 0.5


def test_a_review_names_everybody(trained, tmp_path):
    assert main(text("report", trained, "--output_dir", tmp_path)) == 0
    content = json.loads((tmp_path / "annotators.json").read_text())
    assert {one["name"] for one in content["annotators"]} == {"Ada", "Max"}
    assert content["unit"] == "mm"
    page = (tmp_path / "annotators.html").read_text()
    assert "Ada" in page
    assert "Max" in page


def test_a_review_says_what_to_draw_next(trained, volumes, tmp_path, capfd):
    """Of a folder with a new image among those that were drawn."""
    shutil.copy(volumes / "images" / "case0.nii.gz", tmp_path / "new.nii.gz")
    assert main(text("report", trained, "--output_dir", tmp_path / "without")) == 0
    pool = ["--pool", volumes / "images", tmp_path / "new.nii.gz"]
    assert main(text("report", trained, "--output_dir", tmp_path / "out", *pool)) == 0
    found, without = (
        json.loads((tmp_path / name / "annotators.json").read_text())["ask_next"] for name in ("out", "without")
    )
    new = [one for one in found if not one["drawn_by"]]
    assert [one["image"] for one in new] == ["new.nii.gz"]
    assert [one for one in found if one["drawn_by"]] == without
    assert [one["uncertainty"] for one in found] == sorted((one["uncertainty"] for one in found), reverse=True)
    said = refused(capfd, "report", trained, "--pool", tmp_path, "--cases", tmp_path)
    assert "--pool is of the review" in said
    said = refused(capfd, "report", trained, "--pool", volumes / "images")
    assert "all 6 images of the pool have drawings or masks already; pass some that nobody has drawn" in said


def test_cases_are_reported_with_calibration_and_everybodys_errors(trained, volumes, tmp_path):
    validated = json.loads((trained / "datalist.json").read_text())["validation"]
    drawn = trained / json.loads((trained / "datalist.json").read_text())["training"][0]["image"]
    new = tmp_path / "Nora.nii.gz"
    shutil.copy(volumes / "images" / "case0.nii.gz", new)
    assert main(text("report", trained, "--cases", drawn, new, "--output_dir", tmp_path / "out")) == 0
    content = json.loads((tmp_path / "out" / "case_report.json").read_text())
    facts = content["calibration"]
    assert (facts["calibrated"], facts["against"], facts["num_images"]) == (True, "drawings", len(validated))
    assert facts["num_pixels"] < 1000, "what was drawn, not all voxels"
    one, other = content["cases"]
    assert one["unit"] == "mm³"
    case = drawn.name.split(".")[0]
    assert [(who["name"], who["drew"]) for who in one["annotators"]] == [
        (name, name in DREW[case]) for name in ("Ada", "Max")
    ]
    assert [(who["name"], who["drew"]) for who in other["annotators"]] == [("Ada", False), ("Max", False)]
    np.testing.assert_allclose(np.sum(other["annotators"][0]["confusion"], 0), 1, atol=1e-4)
    page = (tmp_path / "out" / "case_report.html").read_text()
    assert "Research software, not a medical device" in page
    assert "Only what was <strong>drawn</strong>" in page
    assert "Nora" not in page
    assert "case0" not in page


def test_cases_are_reported_without_what_was_trained_on(trained, volumes, tmp_path):
    shutil.copytree(volumes, tmp_path / "copy")
    listed = json.loads((trained / "datalist.json").read_text())
    for item in listed["training"]:
        (tmp_path / "copy" / trained.name / item["image"]).unlink()
    new = volumes / trained.name / listed["training"][0]["image"]
    words = ["report", tmp_path / "copy" / trained.name, "--cases", new, "--output_dir", tmp_path / "out"]
    assert main(text(*words)) == 0
    assert json.loads((tmp_path / "out" / "case_report.json").read_text())["calibration"]["num_images"] >= 1


def test_what_a_report_asks_of_the_bundle(trained, volumes, tmp_path, monkeypatch, capfd):
    asked = []
    monkeypatch.setattr("medcoarse.cli.report.run_bundle", lambda *words, **given: asked.append((words, given)))
    assert main(text("report", trained, "--cases", volumes / "images", "--output_dir", tmp_path, "--show_names")) == 0
    (words, given), *_ = asked
    assert words[1:] == (["train.json", "case_report.json"], "reporting")
    assert (len(given["cases"]), given["show_names"], given["output_dir"]) == (6, True, str(tmp_path))
    for name, words in (("case_report.json", ["--cases", volumes / "images"]), ("review.json", [])):
        (trained / "configs" / name).rename(tmp_path / name)
        assert f"no configs/{name}; pass what `medcoarse train` wrote" in refused(capfd, "report", trained, *words)
        (tmp_path / name).rename(trained / "configs" / name)


def test_folders_that_are_no_annotators(tmp_path, capfd):
    folder = parted(tmp_path, {"case0": ["Ada"], "case1": ["Ada"]})
    words = ["train", folder / "images", folder / "drawings", "--output_dir", tmp_path / "run", "--annotators"]
    assert "has 1 folders, expected one for each" in refused(capfd, *words)
    (folder / "drawings" / "Max").mkdir()
    shutil.copy(folder / "drawings" / "Ada" / "case0_drawn.nii.gz", folder / "drawings" / "Max")
    (folder / "drawings" / "Ada" / "case1_drawn.nii.gz").unlink()
    assert "1 of 2 images have no drawing by anybody: case1.nii.gz; pass --partial" in refused(capfd, *words)
    (folder / "images" / "case1.nii.gz").unlink()
    assert not (tmp_path / "run").exists()


def test_drawings_of_nobody_are_refused(tmp_path, capfd):
    folder = parted(tmp_path, {"case0": ["Ada"], "case1": ["Max"]})
    shutil.copy(folder / "drawings" / "Ada" / "case0_drawn.nii.gz", folder / "drawings" / "case1_drawn.nii.gz")
    (folder / "drawings" / "notes.txt").write_text("of the session")
    words = ["train", folder / "images", folder / "drawings", "--output_dir", tmp_path / "run", "--annotators"]
    said = refused(capfd, *words, "--background", BACKGROUND, "--plan_only")
    assert "case1_drawn.nii.gz: lies beside the folders of the annotators; move it into the folder of who" in said
    assert not (tmp_path / "run").exists()


def test_monai_label_trains_on_what_one_reader_scribbles(trained, volumes, tmp_path):
    """Whoever scribbles there is none of those who drew before, and has one network."""
    served = serve(trained, tmp_path / "model", iterations_per_epoch=1, batch_size=1)
    image, drawn = volumes / "images" / "case0.nii.gz", tmp_path / "case0.nii.gz"
    strokes = np.choose(volume(0)[2], [0, 3, 0, 2]).astype(np.uint8)
    nib.save(nib.Nifti1Image(strokes, nib.load(image).affine), drawn)
    label_double.train(served, [{"image": str(image), "label": str(drawn)}] * 2, max_epochs=1, val_split=0.5)
    (row,) = json.loads((served / "output" / "metrics.json").read_text())["validation"]
    assert 0 <= row["drawn_agreement"] <= 1
