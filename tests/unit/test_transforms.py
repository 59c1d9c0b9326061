"""The MONAI side: same drawings whatever the loader, metadata kept, bad labels refused."""

from __future__ import annotations

import json

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, RandFlipd, RandomizableTrait, Resized

from medcoarse import annotators as a
from medcoarse import profiles
from medcoarse.assignment import assign_annotators, with_annotators
from medcoarse.transforms import array, dictionary
from medcoarse.transforms.array import (
    HideAnnotators,
    MergeStrokes,
    OutsideToUnlabeled,
    RandSimulateCoarse,
    ReplayCoarse,
    SimulateCoarse,
    SimulateCoarseBatch,
    as_profiles,
)
from medcoarse.transforms.dictionary import (
    DrawnForegroundd,
    HideAnnotatorsd,
    HideLabeld,
    MergeStrokesd,
    OutsideToUnlabeledd,
    RandSimulateCoarsed,
    ReplayCoarsed,
    SimulateCoarsed,
)

U = a.UNLABELED
POSITIVE = ["coarse_positive", profiles.OVER, {"thin_mm": 1.0}]
NEGATIVE = ["coarse_negative", "blank", {"thicken_mm": 1.0}]


def label(dims: int = 2, size: int = 40, seed: int = 0) -> np.ndarray:
    """(1, *S): a few random boxes."""
    rng = np.random.default_rng(seed)
    shape = (size, size + 5) if dims == 2 else (size // 2, size // 2 + 3, 9)
    values = np.zeros((1, *shape), np.uint8)
    for _ in range(5):
        start = [rng.integers(0, n - 4) for n in shape]
        values[(0, *(slice(s, s + n // 4) for s, n in zip(start, shape, strict=True)))] = 1
    return values


def meta(values: np.ndarray, spacing: tuple[float, ...]) -> MetaTensor:
    affine = np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    return MetaTensor(torch.from_numpy(values), affine=affine, meta={"filename_or_obj": "patient.nii.gz"})


def same(one, other) -> bool:
    return bool((np.asarray(one) == np.asarray(other)).all()) and one.shape == other.shape


class TestNames:
    def test_no_clash_with_monai(self):
        ours = {name for module in (array, dictionary) for name in vars(module) if "oarse" in name or "trokes" in name}
        ours |= {"OutsideToUnlabeled", "OutsideToUnlabeledd", "HideAnnotators", "HideAnnotatorsd"}
        ours |= {"DrawnForegroundd"}
        assert {"SimulateCoarse", "RandSimulateCoarsed", "MergeStrokesd"} <= ours
        assert not [name for name in ours if hasattr(mt, name)]

    def test_profiles_by_name_with_the_kind_of_their_place(self):
        assert [p.kind for p in as_profiles(NEGATIVE, "negative")] == ["negative"] * 3
        assert as_profiles("good") == (profiles.GOOD,)
        assert as_profiles(()) == ()
        with pytest.raises(
            ValueError, match="negative needs profiles of kind 'negative', got 'dhe_blank' of kind 'pos"
        ):
            as_profiles("dhe_blank", "negative")  # background everywhere is not the same as nothing ruled out
        with pytest.raises(ValueError, match="positive needs profiles of kind 'positive', got 'coarse_negative'"):
            SimulateCoarsed("label", positive="coarse_negative")
        with pytest.raises(ValueError, match="unknown annotator profile 'perfect'; known are good, over"):
            SimulateCoarse(["good", "perfect"])


class TestArrays:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_shape_type_and_content(self, dims):
        values = label(dims)
        annotation = SimulateCoarse(POSITIVE, seed=3)(values)
        assert annotation.shape == (3, *values.shape[1:])
        assert annotation.dtype == np.uint8
        over = a.draw(profiles.OVER, values[0]).annotation
        assert same(annotation[1], over)

    def test_any_type_of_array_gives_the_same_drawing(self):
        values, draw = label(), SimulateCoarse(POSITIVE)
        expected = draw(values)
        for dtype in (np.float32, np.int64, np.bool_):
            assert same(draw(values.astype(dtype)), expected)
        tensor = draw(torch.from_numpy(values).float())
        assert type(tensor) is torch.Tensor
        assert tensor.dtype == torch.uint8
        assert same(tensor.numpy(), expected)

    def test_same_seed_same_result_and_nothing_else_matters(self):
        values = label()
        one, two, other = (SimulateCoarse("coarse_positive", seed=seed) for seed in (1, 1, 2))
        two(label(seed=5))  # what was drawn before
        assert same(one(values), two(values))
        assert not same(one(values), other(values))

    def test_annotators_and_label_maps_draw_independently(self):
        drawn = SimulateCoarse(["coarse_positive"] * 2)(label())
        assert not same(drawn[0], drawn[1])
        here = np.pad(np.ones((1, 12, 12), np.uint8), ((0, 0), (10, 12), (10, 12)))
        there = np.roll(here, 1, axis=1)
        draw = SimulateCoarse("coarse_positive")
        assert not same(np.roll(draw(here), 1, axis=1), draw(there))

    def test_random_one_draws_anew_and_honours_its_state(self):
        values = label()
        one, two = (RandSimulateCoarse("coarse_positive").set_random_state(seed=7) for _ in range(2))
        first, second = one(values), one(values)
        assert not same(first, second)
        assert same(two(values), first)
        assert same(two(values, randomize=False), first)
        assert same(two.set_random_state(state=np.random.RandomState(7))(values), first)

    @pytest.mark.parametrize(("dims", "spacing"), [(2, (0.5, 2.0)), (3, (0.5, 0.5, 2.0))])
    def test_spacing_comes_from_the_metadata(self, dims, spacing):
        values, draw = label(dims), SimulateCoarse(profiles.OVER)
        annotation = draw(meta(values, spacing))
        assert same(annotation[0], a.draw(profiles.OVER, values[0], spacing=spacing).annotation)
        assert not same(annotation, draw(values))
        assert same(SimulateCoarse(profiles.OVER, spacing=1.0)(meta(values, spacing)), draw(values))

    def test_metadata_is_kept(self):
        truth = meta(label(), (0.5, 2.0))
        annotation = SimulateCoarse(POSITIVE)(truth)
        assert isinstance(annotation, MetaTensor)
        assert annotation.dtype == torch.uint8
        assert same(annotation.affine, truth.affine)
        assert annotation.meta["filename_or_obj"] == "patient.nii.gz"

    def test_every_class_in_turn(self):
        values = label()
        values[:, :10, :10] = 2
        assert same(SimulateCoarse("good", target=None, num_classes=3)(values), values)

    def test_replay(self):
        draw = SimulateCoarse(POSITIVE)
        annotation, record = draw.draw(label(), draw.seeds(label()))
        assert same(ReplayCoarse()(label(), json.loads(json.dumps(record))), annotation)
        assert ReplayCoarse()(label(), []).shape == (0, 40, 45)
        with pytest.raises(
            ValueError, match=r"recorded on a label map of shape \(40, 45\), and this one has \(40, 44\)"
        ):
            ReplayCoarse()(label()[..., :-1], json.loads(json.dumps(record)))
        older = [{key: value for key, value in one.items() if key != "shape"} for one in record]
        assert same(ReplayCoarse()(label(), older), annotation)

    def test_merge_and_outside(self):
        positive, negative = np.array([[[1, 1, U]]], np.uint8), np.array([[[1, U, 1]]], np.uint8)
        assert MergeStrokes()(torch.from_numpy(positive), torch.from_numpy(negative)).tolist() == [[[U, 1, 0]]]
        outside = OutsideToUnlabeled()
        for kind in (np.uint8, np.float32, np.int64):
            clipped = outside(positive.astype(kind), np.array([[[1, 0, 1.0]]]))
            assert clipped.tolist() == [[[1, U, U]]]
            assert clipped.dtype == kind
        assert positive.tolist() == [[[1, 1, U]]]
        stacked = outside(np.zeros((3, 2, 2), np.uint8), np.array([[[0, 1], [1, 1]]]))
        assert stacked[:, 0, 0].tolist() == [U] * 3
        with pytest.raises(ValueError, match=r"mask must have shape \(1, 1, 3\), got \(3, 1, 3\)"):
            outside(positive, np.ones((3, 1, 3)))
        with pytest.raises(ValueError, match="int8 cannot hold the unlabeled value 255"):
            outside(positive.astype(np.int8), np.ones((1, 1, 3)))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.full((1, 4, 4), 0.5), "label must hold integers from 0 to 255, got 0.5; resample labels by nearest"),
            (np.full((1, 4, 4), -1), "label must hold integers from 0 to 255, got -1"),
            (np.full((1, 4, 4), 256), "label must hold integers from 0 to 255, got 256"),
            (np.full((1, 4, 4), np.nan), "label must hold integers, got NaN"),
            (np.zeros((2, 4, 4)), r"one label map of shape \(1, \*S\).*got \(2, 4, 4\); turn one-hot channels"),
            (np.zeros((4, 4)), r"one label map of shape \(1, \*S\).*got \(4, 4\)"),
            (np.zeros((1, 1, 4, 4, 4)), r"got \(1, 1, 4, 4, 4\)"),
            (np.full((1, 4, 4), 7), "label values must be whole numbers below num_classes=2, or 255, got 7"),
            (
                np.kron([[[0, 255]]], np.ones((1, 4, 2))),
                r"^label holds only 0 and 255: a 0/255 mask\? 255 means unlabeled; map it with "
                r"MapLabelValued\(keys, \[0, 255\], \[0, 1\]\)",
            ),
        ],
    )
    @pytest.mark.parametrize("transform", [SimulateCoarse, RandSimulateCoarse])
    def test_bad_labels(self, transform, values, message):
        with pytest.raises(ValueError, match=message):
            transform("coarse_positive")(values)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"target": 2}, "target must be None or a class below num_classes=2, got 2"),
            ({"target": "1"}, "target must be None or a class below num_classes=2, got '1'"),
            ({"num_classes": 1}, "num_classes must be between 2 and 254"),
            ({"num_classes": 300}, "num_classes must be between 2 and 254"),
            ({"num_classes": 2.5}, "num_classes must be a whole number, got 2.5"),
            ({"spacing": []}, "spacing must be positive numbers"),
            ({"spacing": True}, "spacing must be positive numbers"),
            ({"spacing": "1"}, r"spacing must be positive numbers \(mm per voxel\), got '1'"),
            ({"spacing": [1.0, 0.0]}, r"spacing must be positive numbers \(mm per voxel\), got \[1.0, 0.0\]"),
        ],
    )
    @pytest.mark.parametrize("transform", [SimulateCoarse, RandSimulateCoarse])
    def test_arguments_are_checked_before_the_first_item(self, transform, arguments, message):
        with pytest.raises(ValueError, match=message):
            transform("good", **arguments)

    @pytest.mark.parametrize(
        "spacing", [1, 0.5, (1, 2.0), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), np.float32(0.5), None]
    )
    def test_spacings_that_are_numbers(self, spacing):
        values = np.zeros((1, 6, 5), np.uint8)
        assert SimulateCoarse("good", np.int64(1), spacing=spacing)(values).shape == (1, 6, 5)

    @pytest.mark.parametrize("values", [[0, 0], [U, U], [0, 1], [1, U], [0, 1, U]])
    @pytest.mark.parametrize("transform", [SimulateCoarse, RandSimulateCoarse])
    def test_labels_that_are_no_0_255_masks(self, transform, values):
        assert same(transform("good")(np.array([[values]])), np.array([[values]]))
        empty = np.array([[0, U]], np.uint8)  # with a field of view: fine where nobody can mistake it
        assert same(a.draw(profiles.GOOD, empty).annotation, empty)

    def test_bad_seed(self):
        with pytest.raises(ValueError, match="seed must be a whole number >= 0, got -1"):
            SimulateCoarse("good", seed=-1)


class TestDictionaries:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_equals_the_array_transform(self, dims):
        values = label(dims)
        item = SimulateCoarsed("label", POSITIVE, NEGATIVE, seed=5)({"label": values, "name": "a"})
        assert same(item["positive"], SimulateCoarse(POSITIVE, seed=5)(values))
        assert same(item["negative"], SimulateCoarse(NEGATIVE, seed=5, kind="negative")(values))
        assert item["name"] == "a"
        random = RandSimulateCoarsed("label", POSITIVE).set_random_state(3)
        assert same(random({"label": values})["positive"], RandSimulateCoarse(POSITIVE).set_random_state(3)(values))

    def test_a_kind_that_nobody_draws_has_no_key(self):
        item = SimulateCoarsed("label", positive="good")({"label": label()})
        assert set(item) == {"label", "positive", "coarse_parameters"}

    def test_the_item_it_was_given_stays_as_it_is(self):
        item = {"label": label()}
        SimulateCoarsed("label", "coarse_positive")(item)
        assert set(item) == {"label"}
        assert same(item["label"], label())

    def test_positive_and_negative_with_the_same_operations_draw_independently(self):
        fields = {"num_fractures": 3}
        parameters = json.loads(SimulateCoarsed("label", fields, fields)({"label": label()})["coarse_parameters"])
        places = [parameters[kind][0]["parameters"]["cut_places"] for kind in ("positive", "negative")]
        assert places[0] != places[1]

    def test_several_label_maps(self):
        keys = {"positive_key": ["p1", "p2"], "negative_key": ["n1", "n2"], "parameters_key": ["d1", "d2"]}
        item = SimulateCoarsed(["a", "b"], "coarse_positive", **keys)({"a": label(), "b": label(seed=1)})
        assert same(item["p2"], SimulateCoarse("coarse_positive")(label(seed=1)))
        with pytest.raises(ValueError, match="positive_key needs one name for each of the keys"):
            SimulateCoarsed(["a", "b"], "coarse_positive")

    def test_missing_keys(self):
        assert SimulateCoarsed("label", "good", allow_missing_keys=True)({"image": 1}) == {"image": 1}
        with pytest.raises(KeyError, match="label"):
            SimulateCoarsed("label", "good")({"image": 1})

    @pytest.mark.parametrize("transform", [SimulateCoarsed, RandSimulateCoarsed])
    def test_replay(self, transform):
        drawn = transform("label", POSITIVE, NEGATIVE)({"label": meta(label(), (0.8, 1.5))})
        again = ReplayCoarsed("label")({"label": label(), "coarse_parameters": drawn["coarse_parameters"]})
        assert same(again["positive"], drawn["positive"])
        assert same(again["negative"], drawn["negative"])
        with pytest.raises(KeyError, match="no recorded drawings under 'coarse_parameters'; run SimulateCoarsed first"):
            ReplayCoarsed("label")({"label": label()})

    def test_merge_and_outside(self):
        item = SimulateCoarsed("label", "stroke_positive", "stroke_negative")({"label": meta(label(), (1.0, 1.0))})
        merged = MergeStrokesd()(item)["strokes"]
        assert isinstance(merged, MetaTensor)
        assert merged.shape == (1, 40, 45)
        assert {0, 1, U} == set(np.unique(merged))
        del item["negative"]
        assert same(MergeStrokesd()(item)["strokes"], item["positive"])  # nobody said what anything is not
        assert MergeStrokesd(allow_missing_keys=True)({"label": 1}) == {"label": 1}
        with pytest.raises(KeyError, match=r"neither 'positive' nor 'negative', got .'label'"):
            MergeStrokesd()({"label": 1})
        with pytest.raises(ValueError, match="keys must name the positive and the negative annotations"):
            MergeStrokesd("positive")
        fov = np.zeros((1, 40, 45))
        fov[:, :20] = 1
        clipped = OutsideToUnlabeledd(["label", "positive"], "fov")(item | {"fov": fov})
        assert (clipped["label"][:, 20:] == U).all()
        assert same(clipped["label"][:, :20], item["label"][:, :20])


@pytest.mark.parametrize("dims", [2, 3])
def test_labels_are_hidden_only_where_the_mask_is_unknown(dims):
    values = meta(label(dims), (2.0,) * dims)
    hide = HideLabeld("label", "has_mask")
    hidden = hide({"label": values, "has_mask": False})["label"]
    assert (hidden == U).all()
    assert torch.equal(hidden.affine, values.affine)
    for item in ({"label": values, "has_mask": True}, {"label": values}):
        assert torch.equal(hide(item)["label"], values)


class TestHideAnnotators:
    def drawn(self, dims: int = 2) -> np.ndarray:
        return SimulateCoarse(profiles.DHE_BINARY)(label(dims))

    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("drew", [[], [0], [1, 4], [4, 3, 2, 1, 0]])
    def test_only_those_who_drew_say_something(self, dims, drew):
        drawn = self.drawn(dims)
        before = drawn.copy()
        for kind in (np.asarray, torch.from_numpy, lambda x: meta(x, (2.0,) * dims), lambda x: x.astype(np.int64)):
            hidden = HideAnnotators()(kind(drawn), drew)
            assert type(hidden) is type(kind(drawn))
            assert hidden.dtype == kind(drawn).dtype
            for r in range(5):
                assert same(np.asarray(hidden[r]), drawn[r] if r in drew else np.full_like(drawn[r], U))
        assert same(drawn, before)

    def test_metadata_is_kept(self):
        values = meta(self.drawn(), (0.5, 2.0))
        hidden = HideAnnotatorsd("positive")({"positive": values, "annotators": [1]})["positive"]
        assert isinstance(hidden, MetaTensor)
        assert torch.equal(hidden.affine, values.affine)

    def test_dictionary_equals_array_and_is_its_own_second_time(self):
        drawn, hide = self.drawn(), HideAnnotatorsd("positive", names=["a", "b", "c", "d", "e"])
        item = {"positive": drawn, "annotators": ["d", "a"]}
        once = hide(item)
        assert same(once["positive"], HideAnnotators()(drawn, [0, 3]))
        assert once["annotators"].tolist() == [True, False, False, True, False]
        twice = hide(once)
        assert same(twice["positive"], once["positive"])
        assert same(twice["annotators"], once["annotators"])
        assert item["annotators"] == ["d", "a"]

    def test_without_a_list_everyone_drew_it(self):
        item = HideAnnotatorsd("positive")({"positive": self.drawn()})
        assert same(item["positive"], self.drawn())
        assert item["annotators"].all()

    def test_several_keys(self):
        item = {"positive": self.drawn(), "negative": self.drawn()[:2], "annotators": [0], "n": [1]}
        hide = HideAnnotatorsd(["positive", "negative"], annotators_key=["annotators", "n"])
        hidden = hide(item)
        assert same(hidden["negative"], HideAnnotators()(self.drawn()[:2], [1]))
        assert (hidden["annotators"].tolist(), hidden["n"].tolist()) == ([True] + [False] * 4, [False, True])
        both = HideAnnotatorsd(["positive", "merged"])(item | {"merged": self.drawn()})
        assert same(both["positive"], both["merged"])
        with pytest.raises(ValueError, match="'negative' has 2 annotators, but 'annotators' is about 5; give each"):
            HideAnnotatorsd(["positive", "negative"])(item)
        assert HideAnnotatorsd("other", allow_missing_keys=True)({"image": 1}) == {"image": 1}
        with pytest.raises(KeyError, match="other"):
            HideAnnotatorsd("other")({"image": 1})

    def test_any_pattern_makes_a_batch(self):
        wanted = [0, 1, 5, 2, 3, 1]
        assignment = assign_annotators(6, 5, wanted)
        items = with_annotators([{"label": label(seed=seed)} for seed in range(6)], assignment)
        steps = Compose([SimulateCoarsed("label", profiles.DHE_BINARY), HideAnnotatorsd("positive")])
        (batch,) = DataLoader(CacheDataset(items, steps, progress=False), batch_size=6)
        drew = np.array([[r in numbers for r in range(5)] for numbers in assignment])
        assert (batch["annotators"].numpy() == drew).all()
        assert ((batch["positive"] != U).flatten(2).any(2).numpy() == drew).all()
        everyone = SimulateCoarse(profiles.DHE_BINARY)(label(seed=2))
        assert same(batch["positive"][2].numpy(), everyone)  # hiding some changes nothing of the others' drawings

    def test_errors(self):
        with pytest.raises(ValueError, match="annotators lists 5, but there are 5, numbered from 0"):
            HideAnnotators()(self.drawn(), [5])
        with pytest.raises(ValueError, match=r"annotation must have a channel for each of \['a', 'b'\], got 5"):
            HideAnnotators(["a", "b"])(self.drawn(), ["a"])
        with pytest.raises(ValueError, match="annotators says yes or no 4 times, but there are 5"):
            HideAnnotators()(self.drawn(), np.ones(4, bool))
        for kind in (torch.bool, torch.int8):
            with pytest.raises(ValueError, match=f"{kind} cannot hold the unlabeled value 255; convert"):
                HideAnnotators()(torch.zeros(2, 3, 3, dtype=kind), [0])
        with pytest.raises(ValueError, match="int8 cannot hold the unlabeled value 255"):
            HideAnnotators()(np.zeros((2, 3, 3), np.int8), [0])


ITEMS = [{"label": label(seed=seed)} for seed in range(6)]
SPACING = (0.5, 0.7, 2.0)
VOLUMES = [{"label": meta(label(3, seed=seed), SPACING)} for seed in range(4)]


class TestPipelines:
    def loaded(self, dataset, workers: int, **kwargs) -> list[dict]:
        loader = DataLoader(dataset, batch_size=2, num_workers=workers, **kwargs)
        return [item for batch in loader for item in decollate_batch(batch)]

    @pytest.mark.parametrize(("items", "spacing"), [(ITEMS, None), (VOLUMES, SPACING)], ids=["2D", "anisotropic 3D"])
    def test_cached_and_loaded_by_any_number_of_workers(self, items, spacing):
        transform = Compose([SimulateCoarsed("label", POSITIVE, NEGATIVE, seed=1)])
        assert not isinstance(transform.transforms[0], RandomizableTrait)
        plain = [transform(item) for item in items]
        expected = SimulateCoarse(POSITIVE, seed=1, spacing=spacing)(np.asarray(items[0]["label"]))
        assert same(plain[0]["positive"], expected)
        cached = CacheDataset(items, transform, num_workers=1, progress=False)
        assert same(cached._cache[0]["positive"], expected)  # the drawing itself is what is cached
        for found in (
            self.loaded(cached, 0),
            self.loaded(cached, 2),
            self.loaded(Dataset(items[::-1], transform), 2)[::-1],
        ):
            assert len(found) == len(plain)
            for one, other in zip(found, plain, strict=True):
                assert same(one["positive"].numpy(), other["positive"])
                assert same(one["negative"].numpy(), other["negative"])
                assert one["coarse_parameters"] == other["coarse_parameters"]

    def test_items_with_different_numbers_of_cuts_make_a_batch(self):
        transform = SimulateCoarsed("label", {"fracture_ratio": 1.0, "fracture_length_mm": 4.0})
        drawn = [transform(item) for item in ITEMS]
        cuts = [len(json.loads(d["coarse_parameters"])["positive"][0]["parameters"]["cut_places"]) for d in drawn]
        assert len(set(cuts)) > 1
        assert len(self.loaded(Dataset(ITEMS, transform), 0)) == len(ITEMS)

    def test_random_one_differs_between_epochs_and_is_not_cached(self):
        transform = Compose([RandSimulateCoarsed("label", "coarse_positive")])
        cached = CacheDataset(ITEMS, transform, num_workers=1, progress=False)
        assert "positive" not in cached._cache[0]
        loader = DataLoader(cached, batch_size=2, num_workers=0)
        epochs = [[item for batch in loader for item in decollate_batch(batch)] for _ in range(2)]
        assert not same(epochs[0][0]["positive"], epochs[1][0]["positive"])
        one, two = (Dataset(ITEMS, transform.set_random_state(0))[3]["positive"] for _ in range(2))
        assert same(one, two)

    @pytest.mark.parametrize("lazy", [True, False])
    def test_lazy_pipelines_resample_the_label_before_it_is_drawn(self, lazy):
        steps = [Resized("label", (20, 30), mode="nearest"), SimulateCoarsed("label", "over", spacing=1.0)]
        nearest = {"mode": "nearest"}
        overrides = {"label": nearest, "positive": nearest} if lazy else None
        pipeline = Compose([*steps, RandFlipd(["label", "positive"], prob=1.0)], lazy=lazy, overrides=overrides)
        item = pipeline({"label": meta(label(), (1.0, 1.0))})
        small, drawn = (torch.flip(item[key], [1, 2]) for key in ("label", "positive"))
        assert small.shape == (1, 20, 30)
        assert same(drawn, SimulateCoarse("over", spacing=1.0)(small))

    def test_lazy_pipelines_that_blur_labels_are_reported(self):
        steps = [Resized("label", (23, 31), mode="nearest"), SimulateCoarsed("label", "over")]
        item = {"label": meta(label(), (1.0, 1.0))}
        with pytest.raises(RuntimeError) as error:
            Compose(steps, lazy=True)(item)  # MONAI forgets the mode of a lazy Resized
        assert "resample labels by nearest neighbour; a lazy pipeline needs overrides" in str(error.value.__cause__)


class TestOnAnotherDevice:
    """The path of label maps that live on another device than the CPU, taken here by tensors on the CPU."""

    @pytest.fixture
    def elsewhere(self, monkeypatch):
        monkeypatch.setattr(array, "on_device", lambda label: isinstance(label, torch.Tensor))
        calls = []
        for name in ("draw_batch", "apply_batch"):
            function = getattr(array, name)
            monkeypatch.setattr(array, name, lambda *a, f=function, n=name: calls.append(n) or f(*a))
        return calls

    @pytest.mark.parametrize("dims", [2, 3])
    def test_draws_there_what_is_drawn_here(self, elsewhere, dims):
        truth = meta(label(dims), (0.5, 2.0, 1.0)[:dims])
        draw = SimulateCoarse(POSITIVE, seed=3)
        found, record = draw.draw(truth, draw.seeds(truth))
        expected = SimulateCoarse(POSITIVE, seed=3, spacing=(0.5, 2.0, 1.0)[:dims])(label(dims))
        assert elsewhere == ["draw_batch"] * len(POSITIVE)
        assert isinstance(found, MetaTensor)
        assert same(found.affine, truth.affine)
        assert found.dtype == torch.uint8
        assert same(found.numpy(), expected)
        assert same(ReplayCoarse()(truth, json.loads(json.dumps(record))).numpy(), expected)
        assert elsewhere[-1] == "apply_batch"

    def test_random_drawings_dictionaries_and_nobody(self, elsewhere):
        values = torch.from_numpy(label()).float()
        random = [RandSimulateCoarse("coarse_positive").set_random_state(seed=7) for _ in range(2)]
        assert same(random[0](values).numpy(), random[1](values.numpy()))
        item = SimulateCoarsed("label", POSITIVE, NEGATIVE)({"label": values})
        expected = SimulateCoarsed("label", POSITIVE, NEGATIVE)({"label": values.numpy()})
        for key in ("positive", "negative"):
            assert same(item[key].numpy(), expected[key])
        assert item["coarse_parameters"] == expected["coarse_parameters"]
        assert SimulateCoarse(())(values).shape == (0, 40, 45)
        assert elsewhere

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (torch.full((1, 4, 4), 0.5), "label must hold integers from 0 to 255, got 0.5; resample"),
            (torch.full((1, 4, 4), -1, dtype=torch.int8), "label must hold integers from 0 to 255, got -1"),
            (torch.full((1, 4, 4), 256), "label must hold integers from 0 to 255, got 256"),
            (torch.full((1, 4, 4), torch.nan), "label must hold integers, got NaN"),
            (torch.zeros(2, 4, 4), r"one label map of shape \(1, \*S\).*got \(2, 4, 4\)"),
            (torch.full((1, 4, 4), 7), "label values must be whole numbers below num_classes=2, or 255, got 7"),
            (torch.tensor([[[0, 255]]]), r"^label holds only 0 and 255: a 0/255 mask\?"),
        ],
    )
    def test_bad_labels(self, elsewhere, values, message):
        with pytest.raises(ValueError, match=message):
            SimulateCoarse("coarse_positive")(values)

    def test_only_tensors_off_the_cpu(self):
        assert array.on_device(torch.zeros(1, 2, 2, device="meta"))
        assert not array.on_device(torch.zeros(1, 2, 2))
        assert not array.on_device(np.zeros((1, 2, 2)))


class TestBatches:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_draws_what_the_dictionary_transform_draws(self, dims):
        labels = [label(dims, seed=seed) for seed in range(3)]
        batch = torch.from_numpy(np.stack(labels))
        positive, negative = SimulateCoarseBatch(POSITIVE, NEGATIVE, seed=5)(batch)
        assert (positive.dtype, negative.dtype) == (torch.uint8, torch.uint8)
        for b, values in enumerate(labels):
            item = SimulateCoarsed("label", POSITIVE, NEGATIVE, seed=5)({"label": values})
            assert same(positive[b].numpy(), item["positive"])
            assert same(negative[b].numpy(), item["negative"])

    @pytest.mark.parametrize("dims", [2, 3])
    def test_annotators_of_dhe_with_several_classes(self, dims):
        labels = [np.minimum(label(dims, seed=seed) + 2 * label(dims, seed=seed + 9), 2) for seed in range(3)]
        batch = torch.from_numpy(np.stack(labels))
        for target in (1, 2, None):
            positive, _ = SimulateCoarseBatch(profiles.DHE_MULTI_CLASS, target=target, num_classes=3)(batch)
            for b, values in enumerate(labels):
                item = SimulateCoarsed("label", profiles.DHE_MULTI_CLASS, target=target, num_classes=3)(
                    {"label": values}
                )
                assert same(positive[b].numpy(), item["positive"])
                assert same(ReplayCoarsed("label")(item | {"positive": 0})["positive"], item["positive"])
            assert (positive[:, 4] == 0).all()
            assert not torch.equal(positive[:, 3], batch[:, 0])

    def test_annotators_draw_independently(self):
        values = label()
        drawn = SimulateCoarseBatch(["coarse_positive"] * 2)(torch.from_numpy(values)[None])[0][0]
        assert not same(drawn[0], drawn[1])
        assert same(drawn.numpy(), SimulateCoarse(["coarse_positive"] * 2)(values))

    def test_seeds_in_place_of_the_checksum(self):
        batch = torch.from_numpy(np.stack([label()] * 2))
        simulate = SimulateCoarseBatch("coarse_positive")
        first, second = simulate(batch, seeds=[1, 2])[0]
        assert not same(first, second)
        assert same(simulate(batch, seeds=[2, 1])[0][0], second)
        assert same(simulate(batch)[0][0], simulate(batch)[0][1])
        assert simulate(batch)[1].shape == (2, 0, 40, 45)

    def test_spacing_of_collated_metatensors(self):
        items = [meta(label(seed=seed), (0.5, 2.0)) for seed in range(2)]
        batch = list_data_collate(items)
        positive, _ = SimulateCoarseBatch("over")(batch)
        assert isinstance(positive, MetaTensor)
        assert same(positive[1].numpy(), SimulateCoarse("over")(items[1]).numpy())
        assert not same(SimulateCoarseBatch("over", spacing=1.0)(batch)[0], positive)
        mixed = list_data_collate([items[0], meta(label(seed=1), (0.5, 1.0))])
        with pytest.raises(
            ValueError, match=r"must share their spacing, got \[\[0.5, 2.0\], \[0.5, 1.0\]\]; pass spacing"
        ):
            SimulateCoarseBatch("over")(mixed)

    @pytest.mark.parametrize(
        ("values", "seeds", "message"),
        [
            (torch.zeros(2, 4, 4), None, r"label must be a batch of label maps \(B, 1, \*S\), got shape \(2, 4, 4\)"),
            (torch.zeros(2, 2, 4, 4), None, r"label must be a batch of label maps \(B, 1, \*S\)"),
            (torch.full((2, 1, 4, 4), 0.5), None, "label must hold integers from 0 to 255, got 0.5"),
            (torch.zeros(2, 1, 4, 4), [0], "seeds must be one for each of the 2 label maps, got 1"),
            (torch.tensor([[[[0, 1]]], [[[0, 255]]]]), None, "label holds only 0 and 255"),
        ],
    )
    def test_errors(self, values, seeds, message):
        with pytest.raises(ValueError, match=message):
            SimulateCoarseBatch("coarse_positive")(values, seeds)


class TestForeground:
    """What is drawn, so that patches can be cropped around it."""

    @pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda x: meta(x, (0.5, 2.0, 3.0))])
    def test_any_class_of_anybody_but_neither_background_nor_unlabeled(self, kind):
        rng = np.random.default_rng(0)
        positive = rng.choice(np.array([0, 1, 3, U], np.uint8), (4, 3, 4, 5), p=[0.7, 0.05, 0.05, 0.2])
        label = rng.choice(np.array([0, 2, U], np.uint8), (1, 3, 4, 5), p=[0.7, 0.1, 0.2])
        expected = np.zeros((1, 3, 4, 5), np.uint8)
        for voxel in np.ndindex(3, 4, 5):
            said = {*positive[(slice(None), *voxel)].tolist(), label[(0, *voxel)].item()}
            expected[(0, *voxel)] = bool(said & {1, 2, 3})
        item = {"positive": kind(positive), "label": kind(label)}
        found = DrawnForegroundd(["positive", "label"], "drawn")(item)["drawn"]
        assert type(found) is type(kind(label))
        assert same(found, expected)
        assert "uint8" in str(found.dtype)
        assert 0 < expected.mean() < 1
        alone = DrawnForegroundd(["positive", "label"], "drawn", allow_missing_keys=True)({"label": kind(label)})
        assert same(alone["drawn"], (label == 2).astype(np.uint8))

    def test_nothing_to_look_at_is_an_error(self):
        with pytest.raises(KeyError, match=r"none of .*positive.* is there to find foreground in, only .*image"):
            DrawnForegroundd("positive", "drawn", allow_missing_keys=True)({"image": label()})
