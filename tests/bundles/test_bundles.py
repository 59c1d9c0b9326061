"""What every bundle does, end to end, on small synthetic data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medcoarse.bundle_files import MIRRORED
from medcoarse.calibration import HITS
from medcoarse.experiments.results import flat
from tests.bundles.conftest import ROOT

SCHEMA = ROOT / "tests" / "reference" / "bundle_metadata_schema.json"


def test_training_leaves_weights_scores_pictures_and_curves(bundle, trained):
    weights = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())  # flat: what everything downstream reads
    assert not any(name.startswith(("annotator", "segmenter")) for name in weights)
    content = bundle.metrics(trained)
    assert content["facts"]["supervision"] == "coarse"
    assert 0.05 < content["drawings"]["positive_iou"] < 0.9
    assert 0.05 < content["drawings"]["negative_complement_iou"] < 0.9
    assert [row["epoch"] for row in content["validation"]] == [1, 2]
    own = {f"{bundle.structure}_{name}" for name in ("iou", "iou_dataset", "dice", "sensitivity", "specificity")}
    scores = own | {"mean_iou", "mean_iou_dataset"}
    assert set(content["validation"][0]) == scores | {"epoch", "seconds"}
    assert all(0 <= content["validation"][-1][name] <= 1 for name in scores)
    for epoch in (1, 2):
        assert Image.open(trained / "figures" / f"epoch_{epoch:04d}.png").size[0] == 1600
    curves = EventAccumulator(str(trained / "tensorboard")).Reload().Tags()
    assert {"loss/total", "loss/consensus", "loss/trace", f"validation/{bundle.structure}_iou"} < set(curves["scalars"])
    assert curves["images"] == ["validation"]


def test_the_recorded_score_is_that_of_the_saved_weights(bundle, trained):
    recorded = bundle.metrics(trained)["validation"][-1][f"{bundle.structure}_iou"]
    assert recorded == pytest.approx(bundle.recomputed_iou(trained), abs=1e-6)


def test_evaluation_scores_the_test_images_at_native_size(bundle, trained):
    table = bundle.evaluate(trained)
    assert len(table["images"]) == 2
    found_any = False
    for row, item in zip(table["images"], bundle.items("test"), strict=True):
        assert row["name"] == Path(item["image"]).name
        saved = trained / "predictions" / f"{Path(row['name']).stem}_{bundle.structure}.png"
        prediction, label = np.array(Image.open(saved)), np.array(Image.open(bundle.data / item["label"])) > 0
        inside = np.array(Image.open(bundle.data / item["mask"])) > 0 if "mask" in item else np.ones_like(label)
        assert prediction.shape == label.shape == bundle.size
        assert set(np.unique(prediction)) <= {0, 255}
        found = (prediction > 0) & inside
        iou = (found & label).sum() / (found | (label & inside)).sum()
        assert row[f"iou_{bundle.structure}"] == pytest.approx(iou, abs=1e-6)
        found_any |= bool(found.any())
    assert found_any
    assert Image.open(trained / "evaluation.png").size[0] == 1600


def test_evaluation_of_the_annotators(bundle, trained, tmp_path):
    """Beside the scores of the segmentation, from the same images."""
    few = {"confusion#report#num_draws": 3, "confusion#report#num_images": 1}
    places = bundle.places(tmp_path) | {"ckpt_dir": str(trained / "models")}
    configs = ("train.json", "evaluate.json", "evaluate_annotators.json")
    built = bundle.run(*configs, **bundle.small, **places, **few)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["num_images"] == 2
    found = content["annotators"]
    assert (found["num_images"], found["num_draws"]) == (1, 3)
    assert found["images"][0]["name"] == content["images"][0]["name"]
    assert "annotators#image#cm_error" in flat(content), "a table can show it"
    assert Image.open(tmp_path / "confusion.png").size[0] == 1600
    weights = torch.load(trained / "models" / "full.pt", weights_only=True)["model"]
    assert_equal(dict(weights), dict(built.parser.get_parsed_content("coarse_model").state_dict()))
    item = built.parser.get_parsed_content("confusion#dataset")[0]
    redrawn = built.parser.get_parsed_content("confusion#simulate")(item["label"][None])
    for kind, drawing in zip(("positive", "negative"), redrawn, strict=True):  # those who draw are those of training
        assert torch.equal(drawing[0].as_tensor(), item[kind].as_tensor())


def test_calibration_is_that_of_what_is_scored(bundle, trained, tmp_path):
    """Where classes are most likely is where predictions have them: on the grid of the masks, in the field of view."""
    places = bundle.places(tmp_path) | {"ckpt_dir": str(trained / "models")}
    configs = ("train.json", "evaluate.json", "evaluate_calibration.json")
    built = bundle.run(*configs, **bundle.small, **places)
    content = json.loads((tmp_path / "evaluation.json").read_text())
    found = content.pop("calibration")
    assert content == bundle.evaluate(trained), "all else is as without it"
    hits = known = 0
    for path, item in zip(sorted((tmp_path / "predictions").iterdir()), bundle.items("test"), strict=True):
        predicted, label = (np.array(Image.open(p)) > 0 for p in (path, bundle.data / item["label"]))
        inside = np.array(Image.open(bundle.data / item["mask"])) > 0 if "mask" in item else np.ones_like(label)
        hits, known = hits + (predicted == label)[inside].sum(), known + inside.sum()
    assert (found["num_images"], found["num_pixels"]) == (2, known)
    assert built.parser.get_parsed_content("calibration").tables[0, :, HITS].sum() == hits
    assert 0 < found["ece"] < 1
    assert 0 < found["brier"] < 2
    assert found["nll"] > 0


def test_evaluation_of_the_annotators_needs_their_weights(bundle, trained, tmp_path):
    shutil.copy(trained / "models" / "model.pt", tmp_path)
    places = bundle.places(tmp_path) | {"ckpt_dir": str(tmp_path)}
    built = bundle.workflow("train.json", "evaluate.json", "evaluate_annotators.json", **bundle.small, **places)
    with pytest.raises(SystemExit, match=r"no weights at .*full\.pt: train first"):
        built.initialize()


def test_inference_on_a_folder_of_pictures(bundle, trained, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((bundle.data / "images").iterdir())[:2]:
        shutil.copy(path, folder)
    Image.fromarray(np.zeros((75, 101), np.uint8)).save(folder / "grey.jpg")  # another size, grey, odd
    arguments = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "ckpt_dir": str(trained / "models")}
    bundle.run("inference.json", kind="infer", **bundle.small_network, **arguments)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(f"{path.stem}_{bundle.structure}.png" for path in folder.iterdir())
    assert Image.open(tmp_path / "out" / f"grey_{bundle.structure}.png").size == (101, 75)


def test_inference_equals_evaluation(bundle, trained, tmp_path):
    bundle.evaluate(trained)
    arguments = {"dataset_dir": str(bundle.data / "images"), "ckpt_dir": str(trained / "models")}
    bundle.run("inference.json", kind="infer", output_dir=str(tmp_path), **bundle.small_network, **arguments)
    for path in (trained / "predictions").iterdir():
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(tmp_path / path.name)))


@pytest.mark.parametrize(
    ("folder", "where", "message"),
    [("empty", "dataset_dir", "no (photograph|picture) .* pass their folder as --dataset_dir"),
     ("empty", "ckpt_dir", "no weights at .* train first")],
)  # fmt: skip
def test_inference_says_what_is_missing(bundle, trained, tmp_path, folder, where, message):
    arguments = {"dataset_dir": str(bundle.data / "images"), "ckpt_dir": str(trained / "models")}
    built = bundle.workflow("inference.json", kind="infer", **(arguments | {where: str(tmp_path / folder)}))
    with pytest.raises(SystemExit, match=message):
        built.initialize()


def test_inference_refuses_pictures_that_would_share_a_result(bundle, trained, tmp_path):
    folder = tmp_path / "photos [2024]"  # brackets are no pattern
    folder.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / name)
    built = bundle.workflow("inference.json", kind="infer", dataset_dir=str(folder), ckpt_dir=str(trained / "models"))
    with pytest.raises(SystemExit, match="differ in their ending only"):
        built.initialize()


def test_evaluation_without_weights_says_so(bundle, tmp_path):
    with pytest.raises(SystemExit, match=r"no weights at .*model\.pt: train first"):
        bundle.evaluate(tmp_path)


def test_review_of_those_who_drew(bundle, trained, tmp_path):
    places = bundle.places(tmp_path) | {"ckpt_dir": str(trained / "models")}
    bundle.run("train.json", "review.json", **bundle.small, **places)
    content = json.loads((tmp_path / "annotators.json").read_text())
    assert {one["name"] for one in content["annotators"]} == {"positive", "negative"}
    assert {one["num_images"] for one in content["annotators"]} == {content["num_images"]}
    assert content["ask_next"] == []
    assert content["unit"] == "pixels"
    assert (tmp_path / "annotators.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_review_without_weights_says_so(bundle, tmp_path):
    with pytest.raises(SystemExit, match=r"no weights at .*full\.pt: train first"):
        bundle.run("train.json", "review.json", **bundle.small, **bundle.places(tmp_path))


def test_the_annotators_learn_alone_in_the_end(bundle, tmp_path):
    states = []
    for epochs in (0, 1):
        bundle.train(tmp_path / str(epochs), max_epochs=1, warmup_epochs=0, annotator_epochs=epochs)
        states.append(torch.load(tmp_path / str(epochs) / "models" / "full.pt", weights_only=True)["model"])
    without, fitted = states
    same = {name.split(".")[0]: [] for name in fitted}
    for name, value in fitted.items():
        same[name.split(".")[0]].append(torch.equal(value, without[name]))
    assert all(same["segmenter"])
    assert not any(same["annotator"][-2:])  # weight and bias of the head


def test_a_run_resumed_at_an_epoch_boundary_is_bit_identical(bundle, tmp_path):
    """Interrupted twice: while both networks learn, and while the annotators are fitted in the end."""
    epochs = {"max_epochs": 3, "annotator_epochs": 2}
    bundle.train(tmp_path / "whole", **epochs)
    settings = bundle.small | bundle.places(tmp_path / "halves") | epochs
    for epoch in (2, 4):
        halves = bundle.workflow("train.json", **(settings | {"resume": epoch > 2}))
        halves.initialize()

        @halves.trainer.on(Events.EPOCH_COMPLETED(once=epoch))
        def interrupt(engine):  # attached last, so the checkpoint of the epoch is written
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            halves.run()
        assert halves.trainer.state.epoch == epoch
    resumed = bundle.train(tmp_path / "halves", resume=True, **epochs)
    assert resumed.trainer.state.iteration == 5 * resumed.trainer.state.epoch_length
    for name in ("model.pt", "full.pt"):
        whole, halves = (torch.load(tmp_path / run / "models" / name, weights_only=True) for run in ("whole", "halves"))
        assert_equal(whole, halves)
    whole, halves = (
        json.loads((tmp_path / run / "metrics.json").read_text())["validation"] for run in ("whole", "halves")
    )
    assert [row | {"seconds": 0} for row in whole] == [row | {"seconds": 0} for row in halves]


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def train_in_processes(bundle, output, count):
    """The command that a user types; each process scores some of the validation images, or none."""
    configs = ("configs/train.json", "configs/multi_gpu_train.json")
    arguments = bundle.small | bundle.places(output) | {"batch_size": 1}
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone", "-m"]
    done = subprocess.run(
        torchrun + bundle.command("training", *configs, **arguments)[2:],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = bundle.metrics(output)["validation"]
    assert [row["epoch"] for row in rows] == [1, 2]
    alone = bundle.scores_in_one_process(output)
    assert {name: rows[-1][name] for name in alone} == pytest.approx(alone, abs=1e-5)
    assert len(list((output / "tensorboard").glob("events*"))) == 1


def test_two_processes_train_and_gather_their_scores(bundle, tmp_path):
    """torchrun, gloo."""
    train_in_processes(bundle, tmp_path, 2)


def test_more_processes_than_validation_images_train_too(bundle, tmp_path):
    train_in_processes(bundle, tmp_path, 3)


def test_properties(bundle, trained, tmp_path):
    built = bundle.workflow("train.json", **bundle.small, **bundle.places(tmp_path))
    built.initialize()
    assert not built.check_properties()
    arguments = {"dataset_dir": str(bundle.data / "images"), "ckpt_dir": str(trained / "models")}
    inference = bundle.workflow("inference.json", kind="infer", **arguments)
    inference.initialize()
    assert not inference.check_properties()


def test_inference_needs_only_stock_monai(bundle, monkeypatch):
    """But for heads of annotators, where a bundle has them."""
    text = (bundle.root / "configs" / "inference.json").read_text()
    assert "medcoarse" not in text.replace("medcoarse.networks.heads_of", "")
    for name in [name for name in sys.modules if name.split(".")[0] == "medcoarse"]:
        monkeypatch.setitem(sys.modules, name, None)
    parser = ConfigParser(json.loads(text))
    assert type(parser.get_parsed_content("network")).__module__.startswith("monai.")


def test_network_takes_and_gives_what_the_metadata_say(bundle):
    verify_net_in_out(
        net_id="network_def",
        config_file=str(bundle.root / "configs" / "inference.json"),
        meta_file=str(bundle.root / "configs" / "metadata.json"),
        n=1, p=1, any=32,
    )  # fmt: skip


def test_metadata_follow_the_schema(bundle, tmp_path):
    schema = tmp_path / "schema.json"
    shutil.copy(SCHEMA, schema)  # it lies where MONAI would download it to
    verify_metadata(meta_file=str(bundle.root / "configs" / "metadata.json"), filepath=str(schema))
    broken = json.loads((bundle.root / "configs" / "metadata.json").read_text())
    del broken["network_data_format"]["inputs"]["image"]["dtype"]
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="'dtype' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))


def test_export_gives_the_same_prediction(bundle, trained, tmp_path):
    exported = tmp_path / "model.ts"
    ckpt_export(
        net_id="network_def",
        filepath=str(exported),
        ckpt_file=str(trained / "models" / "model.pt"),
        meta_file=str(bundle.root / "configs" / "metadata.json"),
        config_file=str(bundle.root / "configs" / "inference.json"),
        key_in_ckpt="",
        **bundle.small_network,
    )
    built = bundle.workflow("inference.json", kind="infer", **bundle.small_network)
    built.parser.parse()
    network = built.parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(trained / "models" / "model.pt", weights_only=True))
    image = torch.rand(1, network.in_channels, 32, 32)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(exported)(image), network.eval()(image), atol=1e-5)


def test_files_that_the_model_zoo_asks_for(bundle):
    for name in ("configs/metadata.json", "LICENSE", "docs/README.md", "docs/data_license.txt"):
        assert (bundle.root / name).stat().st_size > 0
    metadata = json.loads((bundle.root / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert not list(bundle.root.rglob("*.py"))  # bundles hold no code


def test_root_files_are_copies_of_configs(bundle):
    for name in MIRRORED:
        assert (bundle.root / name).read_bytes() == (bundle.root / "configs" / name).read_bytes(), (
            f"run: python -m medcoarse.bundle_files {bundle.root.relative_to(ROOT)}"
        )


def test_bad_data_stop_the_run_with_one_clear_message(bundle, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(bundle.data, broken)
    items = json.loads((broken / "datalist.json").read_text())
    (broken / items["training"][0]["label"]).unlink()
    with pytest.raises(SystemExit, match=r"(?s)DataError.*" + Path(items["training"][0]["label"]).name):
        bundle.train(tmp_path, dataset_dir=str(broken))
    assert not (tmp_path / "models").exists()
