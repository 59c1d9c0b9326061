"""The yardsticks themselves: a benchmark against a wrong reference proves nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import references
from benchmarks.__main__ import NAMES, RESULTS, as_page
from benchmarks.loss import WAYS, case
from benchmarks.timing import peak_bytes, take_turns, times_text
from medcoarse import morphology


def test_released_loss_is_its_equation():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2, 2, generator=generator)
    matrices = torch.randn(1, 9, 2, 2, generator=generator)
    annotation = torch.tensor([[[0, 1], [2, 1]]])
    nll = trace = 0.0
    for row in range(2):
        for column in range(2):
            p = logits[0, :, row, column].softmax(0).tolist()
            cm = [
                [math.log1p(math.exp(matrices[0, 3 * i + j, row, column].item())) for j in range(3)] for i in range(3)
            ]
            sums = [sum(cm[i][j] for i in range(3)) for j in range(3)]
            said = [sum(cm[i][j] / sums[j] * p[j] for j in range(3)) for i in range(3)]
            again = [math.exp(value) for value in said]  # the second softmax
            nll -= math.log(again[annotation[0, row, column]] / sum(again)) / 4
            trace += sum(cm[i][i] / sums[i] for i in range(3)) / 4
    value = references.released_dhe_loss(logits, matrices, annotation, 0.3)
    assert value.item() == pytest.approx(nll + 0.3 * trace, rel=1e-5)


def test_scikit_image_operations_do_the_same_work():
    mask = np.zeros((40, 50), bool)
    mask[10:30, 15:35] = True
    assert (references.thicken_2d(mask, 3) == morphology.thicken(mask, 3.0)).all()
    assert (references.thin_2d(mask, 2) == morphology.thin(mask, 2.0, preserve=True)).all()


def test_functions_take_turns():
    calls: list[str] = []
    timings = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, seconds=0, warmup=1)
    rounds = ["".join(calls[i : i + 2]) for i in range(0, 12, 2)]
    assert rounds[0] == "ab"  # does not count
    assert set(rounds[1:]) == {"ab", "ba"}  # each once a round, no fixed predecessor
    assert timings["a"].runs == 5
    assert timings["a"].low <= timings["a"].median <= timings["a"].high


@pytest.mark.parametrize(("ratio", "text"), [(9.69, "9.7"), (1.26, "1.3"), (19.94, "19.9"), (20.4, "20")])
def test_small_ratios_keep_a_decimal(ratio, text):
    assert times_text(ratio) == text


def allocate(tiny: bool, mebibytes: int):
    return lambda: np.ones(1 if tiny else mebibytes << 17)


def test_peak_memory_sees_what_is_allocated():
    assert peak_bytes(allocate, 64) / 2**20 == pytest.approx(64, abs=6)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_gradients(way):
    assert all(torch.isfinite(slope).all() for slope in case(True, way, 3, (1, 8, 8))())


def test_fusion_is_measured_against_the_same_estimate():
    fusion = pytest.importorskip("benchmarks.fusion", reason="needs SimpleITK")
    assert fusion.difference(24) < 1e-4
    theirs, ours = (fusion.case(False, way, 24)() for way in fusion.PAIRS["majority"])
    assert (fusion.SimpleITK.GetArrayFromImage(theirs) == ours[0, 0].numpy()).all()


def test_fusion_fills_its_table(monkeypatch):
    fusion = pytest.importorskip("benchmarks.fusion", reason="needs SimpleITK")
    monkeypatch.setattr(fusion, "peak_bytes", lambda build, way, side: 2**20)  # starts a process for every way
    results = fusion.run(seconds=0, sides=(8,))
    header, *lines = fusion.rows(results)
    assert len(lines) == len(fusion.WAYS) + 2
    assert all(len(line) == len(header) for line in lines)
    speed = results["table"][0]["median"] / results["table"][1]["median"]
    assert lines[1][3] == f"{speed:.1f}"
    assert lines[-1][1] == f"Spatial STAPLE, until it converges ({results['table'][-1]['iterations']} iterations)"


def test_committed_tables_come_from_committed_figures():
    measured_already = [name for name in NAMES if (RESULTS / f"{name}.json").is_file()]
    stored = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in measured_already}
    assert (RESULTS / "RESULTS.md").read_text() == as_page(stored)
    for measured in stored.values():
        assert measured["commit"] != "unknown"
        assert not measured["commit"].endswith("-dirty")
