"""The LES-AV bundle, end to end, on small synthetic photographs in the official layout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medcoarse.bundle_files import MIRRORED
from tests.bundles.conftest import BUNDLE, ROOT, SMALL, run, train, workflow

SCHEMA = ROOT / "tests" / "reference" / "bundle_metadata_schema.json"


def command(run_id: str, *config_files: str, **overrides) -> list[str]:
    """The command that a user types."""
    configs = config_files[0] if len(config_files) == 1 else str(list(config_files))
    arguments = [f"--{name}={value}" for name, value in overrides.items()]
    return [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", configs, *arguments]


def places(photographs: Path, output: Path) -> dict[str, str]:
    return {"dataset_dir": str(photographs), "output_dir": str(output), "ckpt_dir": str(output / "models")}


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    train(photographs, output)
    return output


def test_training_leaves_weights_scores_pictures_and_curves(trained):
    weights = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())  # flat: what everything downstream reads
    assert not any(name.startswith(("annotator", "segmenter")) for name in weights)
    content = json.loads((trained / "metrics.json").read_text())
    assert content["facts"]["supervision"] == "coarse"
    assert 0.05 < content["drawings"]["positive_iou"] < 0.9
    assert 0.05 < content["drawings"]["negative_complement_iou"] < 0.9
    assert [row["epoch"] for row in content["validation"]] == [1, 2]
    assert {"vessel_iou", "vessel_iou_dataset", "mean_iou", "mean_iou_dataset", "vessel_dice", "vessel_sensitivity",
            "vessel_specificity"} < set(content["validation"][0])  # fmt: skip
    assert all(0 <= content["validation"][-1][name] <= 1 for name in ("vessel_iou", "mean_iou_dataset"))
    for epoch in (1, 2):
        assert Image.open(trained / "figures" / f"epoch_{epoch:04d}.png").size[0] == 1600
    curves = EventAccumulator(str(trained / "tensorboard")).Reload().Tags()
    assert {"loss/total", "loss/consensus", "loss/trace", "validation/vessel_iou"} < set(curves["scalars"])
    assert curves["images"] == ["validation"]


def recomputed_iou(photographs: Path, output: Path) -> float:
    """Independent of any engine: load the saved weights, run the network, count pixels."""
    built = workflow("train.json", **SMALL, **places(photographs, output))
    built.initialize()
    network, dataset = built.network_def, built.parser.get_parsed_content("validate#dataset")
    inferer = built.parser.get_parsed_content("validate#inferer")
    network.load_state_dict(torch.load(output / "models" / "model.pt", weights_only=True))
    values = []
    for item in dataset:
        with torch.no_grad():
            prediction = inferer(item["image"].as_tensor()[None], network.eval())[0].argmax(0).numpy()
        label = item["label"].numpy()[0]
        inside = label != 255
        both = (prediction == 1) & (label == 1) & inside
        either = ((prediction == 1) | (label == 1)) & inside
        values.append(both.sum() / either.sum())
    return float(np.mean(values))


def test_the_recorded_score_is_that_of_the_saved_weights(photographs, trained):
    recorded = json.loads((trained / "metrics.json").read_text())["validation"][-1]["vessel_iou"]
    assert recorded == pytest.approx(recomputed_iou(photographs, trained), abs=1e-6)


@pytest.mark.parametrize("without", ["positive", "negative"])
def test_one_kind_of_drawing_only(photographs, tmp_path, without):
    train(photographs, tmp_path, **{f"{without}_profiles": []})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert len(content["drawings"]) == 1
    assert len(content["validation"]) == 2


@pytest.mark.parametrize("supervision", ["dense", "positive", "semi"])
def test_other_supervision(photographs, tmp_path, supervision):
    train(photographs, tmp_path, supervision=supervision, max_epochs=1, warmup_epochs=0)
    assert json.loads((tmp_path / "metrics.json").read_text())["facts"]["supervision"] == supervision


def test_compiled_training_gives_the_same_weights(photographs, trained, tmp_path):
    train(photographs, tmp_path, compile=True, compile_options={"backend": "eager"})
    plain, compiled = (torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (trained, tmp_path))
    for name, weight in plain.items():
        assert torch.allclose(compiled[name], weight, atol=1e-6), name


def test_gradients_accumulate_over_batches(photographs, tmp_path):
    trained = train(photographs, tmp_path, batch_size=1, accumulation_steps=2, max_epochs=1)
    optimizer = trained.parser.get_parsed_content("optimizer")
    steps = {int(state["step"]) for state in optimizer.state.values()}
    assert steps == {2}, "4 photographs, one a batch, two batches a step"


def test_evaluation_scores_at_native_size(photographs, trained):
    run("train.json", "evaluate.json", **SMALL, **places(photographs, trained))
    table = json.loads((trained / "evaluation.json").read_text())
    names = [row["name"] for row in table["images"]]
    assert len(names) == 2
    predicted, true = 0, 0
    for row, item in zip(table["images"], json.loads((photographs / "datalist.json").read_text())["test"], strict=True):
        prediction = np.array(Image.open(trained / "predictions" / f"{Path(row['name']).stem}_vessel.png"))
        label = np.array(Image.open(photographs / item["label"])) > 0
        inside = np.array(Image.open(photographs / item["mask"])) > 0
        assert prediction.shape == label.shape == (96, 109)
        assert set(np.unique(prediction)) <= {0, 255}
        found = (prediction > 0) & inside
        iou = (found & label).sum() / (found | (label & inside)).sum()
        assert row["iou_vessel"] == pytest.approx(iou, abs=1e-6)
        predicted, true = predicted + found.sum(), true + label.sum()
    assert predicted > 0
    assert Image.open(trained / "evaluation.png").size[0] == 1600


def test_inference_on_a_folder_of_photographs(photographs, trained, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in sorted((photographs / "images").iterdir())[:2]:
        shutil.copy(path, folder)
    Image.fromarray(np.zeros((75, 101), np.uint8)).save(folder / "grey.jpg")  # another size, grey, odd
    small = {name: value for name, value in SMALL.items() if name.startswith(("patch", "network"))}
    arguments = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), "ckpt_dir": str(trained / "models")}
    run("inference.json", kind="infer", **small, **arguments)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(f"{path.stem}_vessel.png" for path in folder.iterdir())
    assert Image.open(tmp_path / "out" / "grey_vessel.png").size == (101, 75)


def test_inference_equals_evaluation(photographs, trained, tmp_path):
    run("train.json", "evaluate.json", **SMALL, **places(photographs, trained))
    small = {name: value for name, value in SMALL.items() if name.startswith(("patch", "network"))}
    arguments = {"dataset_dir": str(photographs / "images"), "ckpt_dir": str(trained / "models")}
    run("inference.json", kind="infer", output_dir=str(tmp_path), **small, **arguments)
    for path in (trained / "predictions").iterdir():
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(tmp_path / path.name)))


@pytest.mark.parametrize(
    ("folder", "where", "message"),
    [("empty", "dataset_dir", "no photograph .* pass their folder as --dataset_dir"),
     ("empty", "ckpt_dir", "no weights at .* train first")],
)  # fmt: skip
def test_inference_says_what_is_missing(photographs, trained, tmp_path, folder, where, message):
    arguments = {"dataset_dir": str(photographs / "images"), "ckpt_dir": str(trained / "models")}
    built = workflow("inference.json", kind="infer", **(arguments | {where: str(tmp_path / folder)}))
    with pytest.raises(SystemExit, match=message):
        built.initialize()


def test_inference_refuses_photographs_that_would_share_a_result(photographs, trained, tmp_path):
    folder = tmp_path / "photos [2024]"  # brackets are no pattern
    folder.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / name)
    built = workflow("inference.json", kind="infer", dataset_dir=str(folder), ckpt_dir=str(trained / "models"))
    with pytest.raises(SystemExit, match="differ in their ending only"):
        built.initialize()


def test_evaluation_without_weights_says_so(photographs, tmp_path):
    with pytest.raises(SystemExit, match=r"no weights at .*model\.pt: train first"):
        run("train.json", "evaluate.json", **SMALL, **places(photographs, tmp_path))


def test_a_run_resumed_at_an_epoch_boundary_is_bit_identical(photographs, tmp_path):
    train(photographs, tmp_path / "whole", max_epochs=3)
    halves = workflow("train.json", **(SMALL | places(photographs, tmp_path / "halves") | {"max_epochs": 3}))
    halves.initialize()

    @halves.trainer.on(Events.EPOCH_COMPLETED(once=2))
    def interrupt(engine):  # attached last, so the checkpoint of the epoch is written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halves.run()
    resumed = train(photographs, tmp_path / "halves", max_epochs=3, resume=True)
    assert resumed.trainer.state.iteration == 3 * resumed.trainer.state.epoch_length
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


def test_killed_in_the_middle_of_an_epoch_the_same_command_resumes(photographs, tmp_path):
    """The user's own command in a process of its own, ended by SIGKILL."""
    long = SMALL | {"max_epochs": 40, "repeats": 4} | places(photographs, tmp_path) | {"resume": True}
    arguments = command("training", "bundles/les_av/train.json", **long)
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    checkpoint, deadline = tmp_path / "models" / "full.pt", time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, output
    epoch = torch.load(checkpoint, weights_only=True)["trainer"]["iteration"]
    assert epoch > 0
    assert "Nothing to resume from" in output
    again = subprocess.run(
        command("training", "bundles/les_av/train.json", **(long | {"max_epochs": 40, "train#trainer#max_epochs": 30})),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Resumed from" in again.stdout
    epochs = [row["epoch"] for row in json.loads((tmp_path / "metrics.json").read_text())["validation"]]
    assert epochs == list(range(1, 31))  # nothing lost, nothing twice


def test_a_finished_run_can_be_trained_longer(photographs, tmp_path):
    train(photographs, tmp_path)
    before = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    longer = train(photographs, tmp_path, max_epochs=4, resume=True)
    after = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert longer.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * 0.25**0.9)


def test_resuming_a_finished_run_changes_nothing_and_says_so(photographs, trained, capsys):
    before = (trained / "models" / "model.pt").read_bytes()
    train(photographs, trained, resume=True)
    assert "has been trained for 2 epochs already; to go on, raise max_epochs above 2" in capsys.readouterr().out
    assert (trained / "models" / "model.pt").read_bytes() == before


def test_two_processes_train_and_gather_their_scores(photographs, tmp_path):
    """torchrun, gloo."""
    configs = str([f"bundles/les_av/configs/{name}.json" for name in ("train", "multi_gpu_train")])
    arguments = SMALL | places(photographs, tmp_path) | {"batch_size": 1}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]
    done = subprocess.run(
        torchrun + command("training", configs, **arguments)[2:],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "metrics.json").read_text())["validation"]
    assert [row["epoch"] for row in rows] == [1, 2]
    # Each process scored one of the two images: only gathered, they give the mean over both.
    assert rows[-1]["vessel_iou"] == pytest.approx(recomputed_iou(photographs, tmp_path), abs=1e-5)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1


def test_properties(photographs, trained, tmp_path):
    built = workflow("train.json", **SMALL, **places(photographs, tmp_path))
    built.initialize()
    assert not built.check_properties()
    arguments = {"dataset_dir": str(photographs / "images"), "ckpt_dir": str(trained / "models")}
    inference = workflow("inference.json", kind="infer", **arguments)
    inference.initialize()
    assert not inference.check_properties()


def test_inference_needs_only_stock_monai():
    assert "medcoarse" not in (BUNDLE / "configs" / "inference.json").read_text()


def test_network_takes_and_gives_what_the_metadata_say():
    verify_net_in_out(
        net_id="network_def",
        config_file=str(BUNDLE / "configs" / "inference.json"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        n=1, p=1, any=32,
    )  # fmt: skip


def test_metadata_follow_the_schema(tmp_path):
    schema = tmp_path / "schema.json"
    shutil.copy(SCHEMA, schema)  # it lies where MONAI would download it to
    verify_metadata(meta_file=str(BUNDLE / "configs" / "metadata.json"), filepath=str(schema))
    broken = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    del broken["network_data_format"]["inputs"]["image"]["dtype"]
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="'dtype' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))


def test_export_gives_the_same_prediction(trained, tmp_path):
    exported = tmp_path / "model.ts"
    small = {name: value for name, value in SMALL.items() if name.startswith(("patch", "network"))}
    ckpt_export(
        net_id="network_def",
        filepath=str(exported),
        ckpt_file=str(trained / "models" / "model.pt"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        config_file=str(BUNDLE / "configs" / "inference.json"),
        key_in_ckpt="",
        **small,
    )
    built = workflow("inference.json", kind="infer", **small)
    built.parser.parse()
    network = built.parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(trained / "models" / "model.pt", weights_only=True))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(exported)(image), network.eval()(image), atol=1e-5)


def test_files_that_the_model_zoo_asks_for():
    for name in ("configs/metadata.json", "LICENSE", "docs/README.md", "docs/data_license.txt"):
        assert (BUNDLE / name).stat().st_size > 0
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert not list(BUNDLE.rglob("*.py"))  # bundles hold no code


def test_root_files_are_copies_of_configs():
    for name in MIRRORED:
        assert (BUNDLE / name).read_bytes() == (BUNDLE / "configs" / name).read_bytes(), (
            f"run: python -m medcoarse.bundle_files {BUNDLE.relative_to(ROOT)}"
        )


def test_bad_data_stop_the_run_with_one_clear_message(photographs, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(photographs, broken)
    items = json.loads((broken / "datalist.json").read_text())
    (broken / items["training"][0]["label"]).unlink()
    with pytest.raises(SystemExit, match=r"(?s)DataError.*" + Path(items["training"][0]["label"]).name):
        train(broken, tmp_path)
    assert not (tmp_path / "models").exists()


def test_training_sees_the_whole_frame_and_scores_the_field_of_view_only(photographs, tmp_path):
    """A network that never saw the black frame fills it with vessels."""
    built = workflow("train.json", **SMALL, **places(photographs, tmp_path))
    built.initialize()
    trained_on = built.parser.get_parsed_content("train#dataset")[0]
    assert set(trained_on) == {"image", "positive", "negative"}, "the truth stays out of reach"
    assert all((trained_on[key] != 255).all() for key in ("positive", "negative"))
    scored_on = built.parser.get_parsed_content("validate#dataset")[0]
    mask = json.loads((photographs / "datalist.json").read_text())["test"][0]["mask"]
    outside = 1 - (np.array(Image.open(photographs / mask)) > 0).mean()
    assert (scored_on["label"] == 255).float().mean().item() == pytest.approx(outside, abs=0.02)
