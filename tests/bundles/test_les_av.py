"""The LES-AV bundle, end to end, on small synthetic photographs in the official layout."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from medcoarse.cli.main import main
from tests.bundles.conftest import ROOT

pytestmark = pytest.mark.parametrize("bundle", ["les_av"], indirect=True)


@pytest.mark.parametrize("without", ["positive", "negative"])
def test_one_kind_of_drawing_only(bundle, tmp_path, without):
    bundle.train(tmp_path, **{f"{without}_profiles": []})
    content = bundle.metrics(tmp_path)
    assert content["drawings"]
    assert not any(name.startswith(without) for name in content["drawings"])
    assert len(content["validation"]) == 2


@pytest.mark.parametrize("supervision", ["dense", "positive", "semi"])
def test_other_supervision(bundle, tmp_path, supervision):
    bundle.train(tmp_path, supervision=supervision, max_epochs=1, warmup_epochs=0)
    assert bundle.metrics(tmp_path)["facts"]["supervision"] == supervision


def test_masks_and_drawings_together(bundle, tmp_path):
    """The configuration that goes over this bundle for it: masks settle the classes, and annotators learn at once."""
    built = bundle.run(
        "train.json", "../../mnist/configs/semi.json", **(bundle.small | bundle.places(tmp_path)), num_dense=2
    )
    loss, optimizer = (built.parser.get_parsed_content(name) for name in ("loss", "optimizer"))
    assert (loss.warmup, loss.coupled_dice_weight, loss.dice_weight) == ("masks", 0, 0.5)
    rates = built.parser["learning_rate"], built.parser.get_parsed_content("annotator_learning_rate")
    assert rates[0] == rates[1] == optimizer.defaults["lr"]
    assert bundle.metrics(tmp_path)["facts"]["supervision"] == "semi"


def test_compiled_training_gives_the_same_weights(bundle, trained, tmp_path):
    bundle.train(tmp_path, compile=True, compile_options={"backend": "eager"})
    plain, compiled = (torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (trained, tmp_path))
    for name, weight in plain.items():
        assert torch.allclose(compiled[name], weight, atol=1e-6), name


def test_gradients_accumulate_over_batches(bundle, tmp_path):
    trained = bundle.train(tmp_path, batch_size=1, accumulation_steps=2, max_epochs=1)
    optimizer = trained.parser.get_parsed_content("optimizer")
    steps = {int(state["step"]) for state in optimizer.state.values()}
    assert steps == {2}, "4 photographs, one a batch, two batches a step"


def test_killed_in_the_middle_of_an_epoch_the_same_command_resumes(bundle, tmp_path):
    """The user's own command in a process of its own, ended by SIGKILL."""
    long = bundle.small | {"max_epochs": 40, "repeats": 4} | bundle.places(tmp_path) | {"resume": True}
    arguments = bundle.command("training", "train.json", **long)
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
        bundle.command("training", "train.json", **(long | {"max_epochs": 40, "train#trainer#max_epochs": 6})),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Resumed from" in again.stdout
    epochs = [row["epoch"] for row in bundle.metrics(tmp_path)["validation"]]
    assert epochs == list(range(1, 7))  # nothing lost, nothing twice


def test_a_finished_run_can_be_trained_longer(bundle, tmp_path):
    bundle.train(tmp_path)
    before = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    longer = bundle.train(tmp_path, max_epochs=4, resume=True)
    after = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert longer.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001 * 0.25**0.9)


def test_resuming_a_finished_run_changes_nothing_and_says_so(bundle, trained, capsys):
    before = (trained / "models" / "model.pt").read_bytes()
    bundle.train(trained, resume=True)
    assert "has been trained for 2 epochs already, of 2; to go on, raise max_epochs" in capsys.readouterr().out
    assert (trained / "models" / "model.pt").read_bytes() == before


def test_probabilities_by_the_command_are_those_that_the_bundle_decides_by(bundle, trained, tmp_path):
    """Its own steps make probabilities already, before they are brought to the photograph's grid."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.root / "configs", copy / "configs")
    shutil.copytree(trained / "models", copy / "models")
    parser = ConfigParser(json.loads((copy / "configs" / "inference.json").read_text()))
    for name, value in bundle.small_network.items():
        parser[name.replace("#", "::")] = value
    (copy / "configs" / "inference.json").write_text(json.dumps(parser.get()))
    image = bundle.data / bundle.items("test")[0]["image"]
    for words in (["--probabilities"], []):
        assert main(["predict", str(copy), str(image), "--output_dir", str(tmp_path / f"out{len(words)}"), *words]) == 0
    soft = nibabel.load(next((tmp_path / "out1").glob("*.nii.gz"))).get_fdata().squeeze()
    np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-5)
    with Image.open(next((tmp_path / "out0").glob("*.png"))) as picture:
        np.testing.assert_array_equal(soft.argmax(-1).T, np.asarray(picture) > 0)
    built = bundle.workflow("train.json", **(bundle.small | bundle.places(tmp_path)), section="test")
    built.initialize()
    built.parser.parse()
    network = built.parser.get_parsed_content("network")
    network.load_state_dict(torch.load(trained / "models" / "model.pt", weights_only=True))
    item = built.parser.get_parsed_content("validate#dataset")[0]
    with torch.no_grad():
        logits = built.parser.get_parsed_content("validate#inferer")(
            torch.as_tensor(item["image"])[None], network.eval()
        )
    surest = logits.softmax(1).max().item()
    assert soft.max() == pytest.approx(surest, abs=0.05), "a second softmax would leave 0.73 at most"


def test_training_sees_the_whole_frame_and_scores_the_field_of_view_only(bundle, tmp_path):
    """A network that never saw the black frame fills it with vessels."""
    built = bundle.workflow("train.json", **bundle.small, **bundle.places(tmp_path))
    built.initialize()
    trained_on = built.parser.get_parsed_content("train#dataset")[0]
    assert set(trained_on) == {"image", "positive", "negative"}, "the truth stays out of reach"
    assert all((trained_on[key] != 255).all() for key in ("positive", "negative"))
    scored_on = built.parser.get_parsed_content("validate#dataset")[0]
    mask = bundle.items("test")[0]["mask"]
    outside = 1 - (np.array(Image.open(bundle.data / mask)) > 0).mean()
    assert (scored_on["label"] == 255).float().mean().item() == pytest.approx(outside, abs=0.02)
