"""Self-training as overlays of bundles: digits from strokes, and street scenes beside drawn ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ignite.engine import Events
from PIL import Image
from scipy import ndimage

from medcoarse.selftrain.label_files import read_label
from medcoarse.selftrain.rounds import weights_digest
from medcoarse.synthetic.street import write_street_dataset
from tests.bundles.conftest import SMALL, Bundle

SPARSE = {"dense": False, "ratio": 0.1, "num_parts": 3}
STROKES = {
    "supervision": "strokes",
    "positive_profiles": [SPARSE],
    "negative_profiles": [SPARSE | {"kind": "negative"}],
    "self_training#threshold": 0.2,
}


@pytest.mark.parametrize("bundle", ["mnist", "les_av"], indirect=True)
@pytest.mark.parametrize("key", ["positive", "label"])
def test_strokes_are_filled_round_by_round(bundle, tmp_path, key):
    overlay = "../../mnist/configs/self_training.json"
    options = bundle.small | bundle.places(tmp_path) | STROKES | {"num_rounds": 1, "pseudo_key": key}
    built = bundle.run("train.json", overlay, **options)
    parts = built.parser.get_parsed_content("loss").parts
    assert ("dense" in parts) == (key == "label")
    items = built.parser.get_parsed_content("train#drawings")
    folder = tmp_path / "pseudo_labels" / "round-1"
    names = [item["file"] for item in json.loads((folder / "provenance.json").read_text())["items"]]
    assert len(names) == len(items) == 4
    known = 0
    for name, item in zip(names, items, strict=True):
        label, drawn = read_label(folder / name), item["positive"] != 255
        assert label.shape == item["positive"].shape
        assert (label[drawn] == 255).all(), "people's strokes stay as they are"
        if "mask" in item:
            assert (label[item["mask"] == 0] == 255).all(), "nothing outside the field of view"
        known += int((label != 255).sum())
    assert known > 0
    seen = built.parser.get_parsed_content("train#dataset")[0]
    assert set(seen) == {"image", "positive"} | {key}
    alone = tmp_path / "alone"
    bundle.run("train.json", overlay, **(options | {"output_dir": str(alone)}), run_id="labelling")
    again = json.loads((alone / "pseudo_labels" / "round-1" / "provenance.json").read_text())
    assert [item["file"] for item in again["items"]] == names, "by the weights that training left"


def build_streets(folder: Path, *configs: str, **overrides):
    """A tiny training on drawn streets, ready to run."""
    bundle = Bundle("cityscapes", Path(), SMALL, "", (32, 48), "validation")
    options = SMALL | {
        "dataset_dir": "",
        "output_dir": str(folder),
        "ckpt_dir": str(folder / "models"),
        "synthetic": {"num_training": 4, "num_validation": 1, "num_test": 1, "size": [32, 48]},
        "longest_side": 48,
        "image_size": [48, 32],
        "patch_size": [32, 16],
        "num_synthetic": 3,
        "self_training#threshold": 0.05,
    }
    built = bundle.workflow("train.json", "lcc.json", *configs, **(options | overrides))
    built.initialize()
    return built


def streets(folder: Path, *configs: str, stop: int | None = None, **overrides):
    """The same, run, and killed after some epochs if asked for; or what the last configuration runs."""
    built = build_streets(folder, *configs, **overrides)
    if stop is not None:
        trainer = built.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), lambda engine: engine.terminate())
    built.run()
    built.finalize()
    return built


def test_streets_are_mixed_with_drawn_ones_and_only_those_show_masks(tmp_path):
    built = streets(tmp_path, **{"mixer#prob": 1.0})
    data, items = (built.parser.get_parsed_content(key) for key in ("train#dataset", "train#dataset#data"))
    assert [item["synthetic"] for item in items] == [False] * 4 + [True] * 3
    for item in data:
        assert set(item) == {"image", "positive", "label", "synthetic"}
        if item["synthetic"]:
            assert (item["positive"] == 255).all()
            assert (item["label"] != 255).any()
        else:
            assert ((item["positive"] == 255) | (item["label"] == 255)).all(), "nothing is drawn on what was pasted"
    built.parser.get_parsed_content("mixer").prob = 0.0
    assert all((data[n]["label"] == 255).all() for n in range(4)), "the truth of real images stays out of reach"
    assert "dense" in built.parser.get_parsed_content("loss").parts
    assert (tmp_path / "pseudo_labels" / "round-1" / "provenance.json").is_file()
    with Image.open(tmp_path / "figures" / "synthetic.png") as sheet:
        assert sheet.size == (2 * 48, 3 * 32), "three synthetic streets, each beside its mask"
    streets(tmp_path, "choose.json", pool_section="training", num_chosen=3)
    found = json.loads((tmp_path / "annotate_next.json").read_text())
    assert len(set(found["images"])) == 3
    assert {Path(name) for name in found["images"]} < {Path(item["image"]) for item in items}


def test_synthetic_streets_show_the_pixels_that_people_drew_on(tmp_path):
    dressed, plain = (build_streets(tmp_path / str(on), dressed=on).parser for on in (True, False))
    real = list(dressed.get_parsed_content("train#drawings"))
    shown = 0
    for clad, bare in zip(*(one.get_parsed_content("donors") for one in (dressed, plain)), strict=True):
        label = np.asarray(clad["label"])[0]
        np.testing.assert_array_equal(label, np.asarray(bare["label"])[0])
        inner = ndimage.maximum_filter(label, 3) == ndimage.minimum_filter(label, 3)
        changed = inner & (np.asarray(clad["image"]) != np.asarray(bare["image"])).any(0)
        assert (label[changed] != 255).all()
        for k in np.unique(label[changed]):
            drawn = np.concatenate([np.asarray(one["image"])[:, one["positive"][0] == k].T for one in real])
            seen = {tuple(value) for value in np.asarray(clad["image"])[:, changed & (label == k)].T}
            assert seen <= {tuple(value) for value in drawn}
            shown += 1
    assert shown > 3
    augmented = dressed.get_parsed_content("train#preprocessing")(dressed.get_parsed_content("train#dataset#data")[-1])
    values = {tuple(value) for value in np.asarray(augmented["image"]).reshape(3, -1).T}
    donor = dressed.get_parsed_content("donors")[-1]["image"]
    assert values <= {tuple(value) for value in np.asarray(donor).reshape(3, -1).T}, "training shows what mixing pastes"


def test_synthetic_images_of_ones_own(tmp_path):
    """As a game renders them: masks in Cityscapes' ids, in a folder that data_prep/cityscapes.py lists."""
    own = write_street_dataset(tmp_path / "game", 3, 1, 1, size=(40, 64), seed=7)
    built = build_streets(tmp_path / "run", "donors.json", donor_datalist=str(own / "datalist.json"), num_synthetic=2)
    items, donors = (built.parser.get_parsed_content(key) for key in ("train#dataset#data", "donors"))
    synthetic = [item for item in items if item["synthetic"]]
    assert [Path(item["image"]).is_relative_to(own) for item in synthetic] == [True, True]
    assert len(items) == 4 + 2
    label = np.asarray(donors[0]["label"])
    assert label.shape == (1, 48, 32), "scaled as the real ones, and filled up where they are flatter"
    assert (label[..., [0, -1]] == 255).all()
    assert (label[..., 1:-1] != 255).mean() > 0.9
    assert not (tmp_path / "run" / "donors").exists(), "nothing is drawn"
    whole = {"donor_datalist": str(own / "datalist.json"), "num_synthetic": None, "max_epochs": 1, "num_rounds": 0}
    streets(tmp_path / "run", "donors.json", **whole)
    with Image.open(tmp_path / "run" / "figures" / "synthetic.png") as sheet:
        assert sheet.size == (2 * 48, 3 * 32), "all three of them"
    with pytest.raises(RuntimeError) as caught:
        build_streets(tmp_path / "none", "donors.json").parser.get_parsed_content("donor_items")
    assert "no such datalist" in str(caught.value.__cause__)


def test_images_that_nobody_drew_on_yet_are_not_shown(tmp_path):
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        build_streets(tmp_path, "sampling.json", dressed=True)
    assert "not annotated yet; leave dressed false" in str(caught.value.__cause__)
    initialize = build_streets(tmp_path, "sampling.json").parser["initialize"]
    assert any("set_determinism" in str(step) for step in initialize), "what the bundle does first, it still does"


def test_streets_are_chosen_round_by_round_and_a_resumed_run_is_the_same(tmp_path):
    options = {"num_drawn": [1, 3]}
    whole = streets(tmp_path / "whole", "sampling.json", **options)
    chosen = json.loads((tmp_path / "whole" / "chosen.json").read_text())
    assert (len(set(chosen["images"])), chosen["method"]) == (3, "balanced")
    part = tmp_path / "part"
    streets(part, "sampling.json", **options, stop=3)
    resumed = streets(part, "sampling.json", **options, resume=True)
    assert json.loads((part / "chosen.json").read_text()) == chosen
    assert weights_digest(resumed.network_def) == weights_digest(whole.network_def)
