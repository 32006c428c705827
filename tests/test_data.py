"""Splits: what they refuse at the edge, and that what is made of them is not checked again."""

import pytest
import torch

from alutils import Oracle, Split, Splits, fit, unet_for
from alutils.data import splits as data_module
from alutils.data.packed import PackedMasks
from alutils.data.splits import images_at
from alutils.experiment import Experiment


def pictures(n=2, size=64):
    return torch.zeros(n, 3, size, size, dtype=torch.uint8), torch.zeros(n, 1, size, size, dtype=torch.uint8)


def fit_to(masks, annotated=None):
    model = unet_for(Experiment(encoder_weights=None, decoder_channels=[8, 8, 8, 8, 8]))
    experiment = Experiment(epochs=1, batch_size=2)
    return fit(model, pictures()[0], masks, experiment, torch.Generator(), annotated=annotated, progress=False)


TAKE_MASKS = {
    "Split": lambda masks: Split(pictures()[0], masks, ("a", "b")),
    "Oracle": Oracle,
    "fit": fit_to,
    "fit's annotated": lambda masks: fit_to(pictures()[1], masks),
    "PackedMasks": PackedMasks.pack,
}


@pytest.mark.parametrize("take", TAKE_MASKS.values(), ids=TAKE_MASKS)
def test_masks_of_other_values_than_0_and_1_are_refused_with_the_values_and_the_remedy(take):
    masks = pictures()[1]
    masks[1, 0, :9, :9], masks[0, 0, 0, 0] = 255, 7
    with pytest.raises(ValueError, match=r"got 7, 255: \((masks|annotated) > 127\)"):
        take(masks)


def test_many_other_values_are_cut_short():
    images, masks = pictures(1)
    masks.view(-1)[:200] = torch.arange(200, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"got 2, 3, .*, 11, \.\.\. \(198 in all\):"):
        Split(images, masks, ("a",))


def test_what_is_made_of_a_split_is_not_looked_at_again(monkeypatch):
    split = Split(*pictures(), ("a", "b"))
    splits = Splits(split, Split(*pictures(1), ("c",)), Split(*pictures(1), ("d",)))
    monkeypatch.setattr(data_module, "check_mask", None)
    assert split.select([1]).to("cpu").ids == ("b",) and len(split.select([1]).masks) == 1
    for free in (None, 0):
        assert splits.placed(torch.device("cpu"), free_bytes=free).train.ids == ("a", "b")


def test_positions_are_no_mask_and_each_is_taken_once():
    split = Split(*pictures(), ("a", "b"))
    with pytest.raises(ValueError, match=r"positions, not a mask; mask.nonzero\(\)"):
        split.select(torch.tensor([True, False]))
    with pytest.raises(ValueError, match="different positions, got 1, 1"):
        split.select([1, 1])
    for bad in ([0, -1], [2], [0.9], [[0]]):
        with pytest.raises(ValueError, match=r"indices must be int64 of shape \(n,\), each from 0 to 1, got"):
            split.select(bad)
    assert split.select([]).ids == ()


def test_a_view_of_a_view_is_one_of_the_images_themselves():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    view = images_at(images_at(images, torch.tensor([4, 2, 0])), torch.tensor([2, 0]))
    assert view.images is images and view.indices.tolist() == [0, 4] and view[:][:, 0, 0, 0].tolist() == [0, 4]


def test_an_empty_split_has_a_summary():
    splits = Splits(Split(*pictures(), ("a", "b")), Split(*pictures(0), ()), Split(*pictures(1), ("d",)))
    summary = splits.summary()
    assert summary["images"].tolist() == [2, 0, 1] and summary.loc["val"].isna().sum() == 3


def test_an_id_that_no_record_could_hold_is_refused():
    for name in ("\udcff.jpg", 5):
        with pytest.raises(ValueError, match=r"each id must be text.*(\\udcff|5)") as caught:
            Split(*pictures(), ("a", name))
        assert str(caught.value).encode()


def test_names_that_differ_in_unicode_form_alone_are_one_name():
    composed, decomposed = "M\u00e9lanome", "Me\u0301lanome"
    assert Split(*pictures(1), (decomposed,)).ids == (composed,)
    with pytest.raises(ValueError, match="more than once: Mélanome"):
        Split(*pictures(), (composed, decomposed))
    with pytest.raises(ValueError, match="train and test share 1 ids"):
        Splits(Split(*pictures(1), (composed,)), Split(*pictures(1), ("b",)), Split(*pictures(1), (decomposed,)))


def test_long_lists_of_ids_are_cut_short():
    names = [f"a{i:02}" for i in range(20)]
    with pytest.raises(ValueError, match=r"a09, \.\.\. \(20 in all\)$"):
        Split(*pictures(40, 8), names * 2)
    with pytest.raises(ValueError, match=r"share 20 ids: .*a09, \.\.\. \(20 in all\)$"):
        Splits(*(Split(*pictures(20, 8), names),) * 3)
