"""What to draw with the hours there are, and training sets that grow."""

from __future__ import annotations

import json
import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.inferers import SimpleInferer

from medcoarse.selftrain.budget import MINUTES, hours_of, measured_points, what_to_draw
from medcoarse.selftrain.growth import DrawnSampler, Growth, choose_next


def test_forecasts_by_hand():
    measured = {"coarse": [(1, 0.3), (4, 0.5), (16, 0.6)], "fine": [(2, 0.2), (32, 0.7)]}
    assert [one.kind for one in what_to_draw(measured, 8)] == ["coarse", "fine"]
    coarse, fine = what_to_draw(measured, 8)  # half way from 4 to 16, half way from 2 to 32, in the logarithm
    assert (coarse.score, fine.score) == pytest.approx((0.55, 0.45))
    assert what_to_draw(measured, 4)[0].score == pytest.approx(0.5), "a measured point is what was measured"
    far = what_to_draw(measured, 100)
    assert [(one.kind, one.score, one.hours, one.known) for one in far] == [
        ("fine", 0.7, 32, False),
        ("coarse", 0.6, 16, False),
    ]
    first, last = what_to_draw(measured, 1)
    assert (first.kind, first.score, last.kind) == ("coarse", 0.3, "fine")
    assert math.isnan(last.score)
    assert [one.kind for one in what_to_draw(dict(reversed(measured.items())), 1)] == ["coarse", "fine"]
    assert (first.known, last.known) == (True, False), "of what was not measured nothing is known"


def test_more_hours_are_never_worse_and_order_does_not_matter():
    measured = {"a": [(8, 0.4), (2, 0.5), (4, 0.3), (16, 0.6), (16, 0.55)], "b": [(3, 0.45)]}
    scores = [what_to_draw(measured, h)[0].score for h in (2, 3, 5, 8, 12, 16, 40)]
    assert scores == sorted(scores)
    assert scores[0] == scores[3] == 0.5
    assert scores[-1] == 0.6


def test_what_a_budget_does_not_take():
    with pytest.raises(ValueError, match="hours must be above 0, got 0"):
        what_to_draw({"a": [(1, 1)]}, 0)
    for points in ([], [(0, 1)]):
        with pytest.raises(ValueError, match="'a' needs points with hours above 0"):
            what_to_draw({"a": points}, 1)
    with pytest.raises(ValueError, match="must not be negative"):
        hours_of(-1, MINUTES["fine"])


def test_points_of_a_table_are_means_over_its_seeds(tmp_path):
    path = tmp_path / "results.csv"
    lines = ["row,series,x,seed,status,mIoU", "a,coarse,2,0,done,0.4", "a,coarse,2,1,done,0.6", "b,coarse,4,0,done,0.7"]
    path.write_text("\n".join([*lines, "c,fine,6,0,not run,", "dense,,,0,done,0.9"]) + "\n")
    assert measured_points(path) == {"coarse": [(2, 0.5), (4, 0.7)]}


# --- growth ------------------------------------------------------------------------------------------------------

KINDS = [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]


class Reader(torch.nn.Module):
    """Sees an image's kind as it is."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.nn.functional.one_hot(x[:, 0].long(), 3).movedim(-1, 1).float()


class Pool:
    """Remembers whose drawings were looked at."""

    def __init__(self):
        self.data = [{"image": f"{n}.png"} for n in range(len(KINDS))]
        self.looked = set()

    def __getitem__(self, n):
        pool = self

        class Item(dict):
            def __getitem__(self, key):
                if key == "positive":
                    pool.looked.add(n)
                return super().__getitem__(key)

        kind = torch.full((1, 2, 2), KINDS[n])
        return Item(image=kind.float(), positive=kind.to(torch.uint8))


def growth(folder, **options):
    pool, sampler = Pool(), DrawnSampler(len(KINDS) + 2)
    arguments = {"num_classes": 3, "numbers": [2, 6], "round_epochs": 2, "path": folder / "chosen.json", "always": 2}
    return Growth(Reader(), pool, SimpleInferer(), sampler, **(arguments | options)), pool, sampler


def run(one, epochs, resumed_after=0):
    engine = Engine(lambda engine, batch: None)
    if resumed_after:
        engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", resumed_after))
    one.attach(engine)
    engine.run([0], max_epochs=epochs)


def test_what_is_chosen_evens_out_the_classes(tmp_path):
    one, pool, sampler = growth(tmp_path)
    run(one, 2)
    first = list(one.chosen)
    assert len(first) == 2
    assert set(sampler.chosen) == {*first, 10, 11}
    one, pool, sampler = growth(tmp_path)
    run(one, 4)
    assert one.chosen[:2] == first, "what is annotated stays annotated"
    counts = json.loads((tmp_path / "chosen.json").read_text())["images_per_class"]
    assert sorted(counts) == [2, 2, 2]
    assert len(set(one.chosen)) == 6
    assert pool.looked == set(one.chosen), "nobody drew on the others"
    assert set(sampler) == {*one.chosen, 10, 11}
    uniform, _, _ = growth(tmp_path, method="uniform")
    run(uniform, 4)
    assert uniform.chosen[:2] == first
    assert len(set(uniform.chosen)) == 6


def test_a_resumed_run_goes_on_with_what_was_chosen(tmp_path):
    one, *_ = growth(tmp_path)
    run(one, 4)
    part, *_ = growth(tmp_path)
    run(part, 3)
    again, _, sampler = growth(tmp_path)
    again.load_state_dict(part.state_dict())
    run(again, 4, resumed_after=3)
    assert again.chosen == one.chosen
    assert set(sampler.chosen) == {*one.chosen, 10, 11}


def test_a_sampler_shows_everything_alike():
    sampler = DrawnSampler(10, num_samples=9)
    sampler.chosen = [2, 5, 7, 8]
    torch.manual_seed(0)
    first, second = list(sampler), list(sampler)
    assert first != second
    for order in (first, second):
        assert sorted(order[:4]) == sorted(order[4:8]) == [2, 5, 7, 8]
        assert len(order) == 9
    assert sorted(DrawnSampler(3)) == [0, 1, 2]


def test_what_growth_does_not_take(tmp_path):
    for numbers in ([], [3, 2], [0, 2], [2, 11]):
        with pytest.raises(ValueError, match="numbers must grow from at least 1 to at most the 10 images"):
            growth(tmp_path, numbers=numbers)
    with pytest.raises(ValueError, match='"balanced" or "uniform"'):
        growth(tmp_path, method="best")


def test_what_to_annotate_next_is_written_down(tmp_path):
    pool = Pool()
    found = choose_next(pool, Reader(), SimpleInferer(), 3, 6, tmp_path / "next.json")
    assert found == json.loads((tmp_path / "next.json").read_text())
    assert found["images_per_class"] == [2, 2, 2]
    assert not pool.looked, "no drawing is there to be looked at"
    one = Dataset([{"image": "a.png"}], lambda _: {"image": torch.zeros(1, 1, 1)})
    assert choose_next(one, Reader(), SimpleInferer(), 3, 1, tmp_path / "one.json")["images"] == ["a.png"]
