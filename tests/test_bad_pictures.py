"""Folders of pictures with every fault we could think of: the right pixels, or one error that names file and remedy."""

import io
import os
import struct
import tempfile
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import alutils
from alutils.data.isic2018 import FOLDERS, load_isic2018
from alutils.data.splits import Split, Splits, identical_pictures, picture_sums
from alutils.system.checks import ConfigError, DataError

IMAGES, MASKS = FOLDERS["train"]
IMAGE, MASK = "A.jpg", "A_segmentation.png"
PACKAGE = Path(alutils.__file__).parent

_rng = np.random.default_rng(0)
PHOTO = Image.fromarray(_rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
BOX = Image.new("L", (32, 32), 0)
BOX.paste(255, (4, 4, 20, 12))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG, MASK_PNG = encoded(PHOTO, "JPEG", quality=95), encoded(PHOTO, "PNG"), encoded(BOX, "PNG")


def pixels(data):
    """(3, 32, 32) of a file of 32 x 32 pixels, which loading at 32 leaves as they are."""
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).copy()).permute(2, 0, 1)


def make_root(folder):
    """A sound pair in each split; A of the training set is the one that the tests replace."""
    for i, (split, name) in enumerate((("train", "A"), ("train", "B"), ("val", "C"), ("test", "D"))):
        for below, file, data in zip(
            FOLDERS[split],
            (f"{name}.jpg", f"{name}_segmentation.png"),
            (encoded(Image.new("RGB", (32, 32), (60 * i, 9, 9)), "JPEG"), MASK_PNG),
            strict=True,
        ):
            (folder / below).mkdir(parents=True, exist_ok=True)
            (folder / below / file).write_bytes(data)
    (folder / IMAGES / IMAGE).write_bytes(JPEG)
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ALUTILS_CACHE", str(tmp_path / "cache"))
    return make_root(tmp_path / "isic")


def load_silently(root, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_isic2018(root, **{"image_size": 32, **options})


def assert_one_short_error(root, *texts, error=DataError, **options):
    """One error of ours, no chain shown, raised by the package, with all ``texts``, and nothing in the cache."""
    with pytest.raises(error) as caught:
        load_silently(root, **options)
    raised = caught.value
    assert type(raised) is error
    assert raised.__cause__ is None and (raised.__suppress_context__ or raised.__context__ is None)
    assert Path(traceback.extract_tb(raised.__traceback__)[-1].filename).is_relative_to(PACKAGE)
    for text in texts:
        assert text in str(raised)
    if "problems" in str(raised):
        assert "; problems: 1\n" in str(raised) and "remedy: " in str(raised)
        assert len(str(raised).splitlines()) == 3
    folder = Path(os.environ["ALUTILS_CACHE"])
    if options.get("degenerate_masks") == "error" and "lesion (1)" in str(raised):
        return  # decoded, for a call that takes such masks
    assert not folder.exists() or {path.suffix for path in folder.iterdir()} <= {".lock"}


def put(root, data, name=IMAGE, folder=IMAGES):
    (root / folder / (IMAGE if folder == IMAGES else MASK)).unlink()
    (root / folder / name).write_bytes(data)


def right_or_refused(root, file, expected):
    try:
        splits = load_silently(root)
    except DataError as error:
        assert file in str(error) and "; problems: 1\n" in str(error) and "remedy: " in str(error)
        return False
    assert torch.equal(splits.train.images[0], expected[0]) and torch.equal(splits.train.masks[0, 0], expected[1])
    return True


SOUND = pixels(JPEG), torch.from_numpy((np.asarray(BOX) > 0).astype(np.uint8))
SOUND_PNG = pixels(PNG), SOUND[1]

# --- truncated and damaged files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0.05, 0.95])
@pytest.mark.parametrize(
    ("folder", "file", "data"),
    [(IMAGES, "A.jpg", JPEG), (IMAGES, "A.png", PNG), (MASKS, MASK, MASK_PNG)],
    ids=["JPEG", "PNG", "mask"],
)
def test_a_truncated_file_is_named(root, folder, file, data, cut):
    put(root, data[: int(len(data) * cut)], file, folder)
    assert_one_short_error(root, "cannot be decoded (1)", f"{folder}/{file}")


@pytest.mark.parametrize("lost", [1, 12])
@pytest.mark.parametrize(
    ("folder", "file", "data", "expected"),
    [(IMAGES, "A.jpg", JPEG, SOUND), (IMAGES, "A.png", PNG, SOUND_PNG)],
    ids=["JPEG", "PNG"],
)
def test_the_last_bytes_lost_cost_no_pixel_or_are_named(root, folder, file, data, expected, lost):
    """The last bytes are an end mark; where all pixels stand before it, the file is as good as whole."""
    put(root, data[:-lost], file, folder)
    right_or_refused(root, f"{folder}/{file}", expected)


@pytest.mark.parametrize("byte", range(0, len(MASK_PNG), 12))
def test_a_flipped_bit_in_a_png_mask_never_moves_the_lesion(root, byte):
    for bit in range(8):
        data = bytearray(MASK_PNG)
        data[byte] ^= 1 << bit
        (root / MASKS / MASK).write_bytes(data)
        right_or_refused(root, f"{MASKS}/{MASK}", SOUND)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, len(MASK_PNG) - 1), st.integers(0, 7)), min_size=1, max_size=4, unique=True
    ),
    cut=st.integers(0, len(MASK_PNG)),
)
def test_any_damage_to_a_mask_is_named_or_harmless(flips, cut):
    data = bytearray(MASK_PNG)
    for byte, bit in flips:
        data[byte] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        root = make_root(Path(folder, "isic"))
        (root / MASKS / MASK).write_bytes(data[:cut] if cut % 2 else data)
        try:
            splits = load_silently(root, cache_dir=Path(folder, "cache"))
        except DataError as error:
            assert f"{MASKS}/{MASK}" in str(error) and "; problems: 1\n" in str(error)
        else:
            assert torch.equal(splits.train.masks[0, 0], SOUND[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=400), head=st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", JPEG[:200]]))
def test_arbitrary_bytes_are_one_error(data, head):
    with tempfile.TemporaryDirectory() as folder:
        root = make_root(Path(folder, "isic"))
        (root / IMAGES / IMAGE).write_bytes(head + data)
        with pytest.raises(DataError, match=f"problems: 1\ncannot be decoded.*\n  {IMAGES}/{IMAGE}: "):
            load_silently(root, cache_dir=Path(folder, "cache"))


# --- kinds of files --------------------------------------------------------------------------------------------------


def png_with_header(width, height, depth, rows=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


NOT_PICTURES = {
    "zero bytes": (b"", "0 bytes"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "version https://git-lfs"),
    "icon": (encoded(PHOTO, "ICO"), "cannot identify"),
    "PNG bomb": (png_with_header(60000, 60000, 8), "exceeds limit"),
    "PNG without pixels": (png_with_header(32, 32, 8), "A.jpg: "),
    "16-bit grey": (encoded(Image.fromarray(np.zeros((32, 32), np.uint16)), "PNG"), "I;16"),
    "16-bit colours": (png_with_header(32, 32, 16, bytes(32 * (1 + 32 * 6))), "RGB;16"),
    "12-bit JPEG": (JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"), "A.jpg: "),
}


@pytest.mark.parametrize("kind", NOT_PICTURES)
def test_what_is_no_8_bit_jpeg_or_png_is_named(root, kind):
    data, reason = NOT_PICTURES[kind]
    put(root, data)
    assert_one_short_error(root, "cannot be decoded (1)", f"{IMAGES}/{IMAGE}: ", reason)


def palette(transparent=False):
    image = PHOTO.quantize(16)
    return encoded(image, "PNG", **({"transparency": bytes(range(0, 160, 10))} if transparent else {}))


def with_alpha(mode):
    image = PHOTO.convert(mode)
    image.putalpha(Image.fromarray(_rng.integers(0, 256, (32, 32), dtype=np.uint8)))
    return encoded(image, "PNG")


def several_frames():
    frames = [PHOTO, Image.new("RGB", (32, 32), "blue")]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])


def without_alpha(data):
    image = Image.open(io.BytesIO(data))
    bands = image.split()[:-1]
    rgb = bands if len(bands) == 3 else bands * 3
    return torch.stack([torch.from_numpy(np.asarray(band).copy()) for band in rgb])


KINDS = {
    "RGB JPEG": (JPEG, pixels(JPEG)),
    "grey JPEG": ((d := encoded(PHOTO.convert("L"), "JPEG")), pixels(d)),
    "CMYK JPEG": ((d := encoded(PHOTO.convert("CMYK"), "JPEG")), pixels(d)),
    "several JPEG frames": (
        encoded(PHOTO, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (32, 32))]),
        pixels(JPEG),
    ),
    "1-bit PNG": ((d := encoded(PHOTO.convert("1"), "PNG")), pixels(d)),
    "palette": ((d := palette()), pixels(d)),
    "palette with transparency": (palette(True), pixels(palette())),
    "LA": ((d := with_alpha("L")), without_alpha(d)),
    "RGBA": ((d := with_alpha("RGB")), without_alpha(d)),
    "animated PNG": (several_frames(), pixels(PNG)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_8_bit_kind_gives_its_pixels_whatever_its_suffix_and_without_a_warning(root, kind):
    data, expected = KINDS[kind]
    put(root, data, "A.PNG" if data[:2] == b"\xff\xd8" else "A.jpg")
    assert torch.equal(load_silently(root).train.images[0], expected)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.mark.parametrize("orientation", [6, 9])
def test_an_exif_orientation_of_both_turns_neither_image_nor_mask(root, orientation):
    put(root, encoded(PHOTO, "PNG", **turned(orientation)))
    put(root, encoded(BOX, "PNG", **turned(orientation)), MASK, MASKS)
    train = load_silently(root).train
    assert torch.equal(train.images[0], SOUND_PNG[0]) and torch.equal(train.masks[0, 0], SOUND[1])


def test_an_image_that_exif_turns_and_its_mask_not_is_taken_as_stored_and_named_at_each_opening(root):
    put(root, encoded(PHOTO, "PNG", **turned(6)))
    for _ in range(2):
        with pytest.warns(UserWarning, match=rf"EXIF data turn, .* \(1\): {IMAGES}/{IMAGE}; .* as they are") as warned:
            train = load_isic2018(root, 32).train
        assert len(warned) == 1 and warned[0].filename == __file__
    assert torch.equal(train.images[0], pixels(PNG))
    assert torch.equal(train.masks[0, 0], SOUND[1])


def test_a_large_photograph_gives_no_warning(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # 32 x 32 is between once and twice that
    assert torch.equal(load_silently(root).train.images[0], SOUND[0])


# --- masks -----------------------------------------------------------------------------------------------------------


def two_level(mode):
    image = BOX.convert(mode)
    if mode == "P":
        image.putpalette([i for i in range(256) for _ in range(3)])
    return encoded(image, "PNG")


GOOD_MASKS = {
    **{mode: two_level(mode) for mode in ("1", "L", "P", "RGB", "LA", "RGBA")},
    "0 and 1": encoded(BOX.point(lambda v: v // 255), "PNG"),
    "animated": encoded(BOX, "PNG", save_all=True, append_images=[Image.new("L", (32, 32), 9)]),
}


@pytest.mark.parametrize("kind", GOOD_MASKS)
def test_two_levels_are_a_mask_in_every_mode(root, kind):
    put(root, GOOD_MASKS[kind], MASK, MASKS)
    assert torch.equal(load_silently(root).train.masks[0, 0], SOUND[1])


def level(value):
    mask = BOX.copy()
    mask.putpixel((31, 31), value)
    return encoded(mask, "PNG")


def mask_of(size):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, 5, 5))
    return encoded(mask, "PNG")


BAD_MASKS = {
    **{f"one pixel of {value}": (level(value), "mask's values (1)") for value in (1, 128)},
    "a JPEG": (encoded(BOX.resize((32, 32), Image.Resampling.BILINEAR, (1, 1, 30, 31)), "JPEG"), "mask's values (1)"),
    "two greys": (encoded(BOX.point(lambda v: 100 + v // 5), "PNG"), "mask's values (1)"),
    "no lesion": (encoded(Image.new("L", (32, 32), 0), "PNG"), "mask without lesion (1)"),
    "all lesion": (encoded(Image.new("L", (32, 32), 255), "PNG"), "mask all lesion (1)"),
    "all ones": (encoded(Image.new("L", (32, 32), 1), "PNG"), "mask all lesion (1)"),
    "16 bits": (encoded(Image.fromarray(np.asarray(BOX).astype(np.uint16) * 257), "PNG"), "cannot be decoded (1)"),
    "31 x 32": (mask_of((31, 32)), "mask's size (1)"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_what_is_no_mask_is_named(root, kind):
    data, problem = BAD_MASKS[kind]
    put(root, data, MASK, MASKS)
    assert_one_short_error(root, problem, f"{MASKS}/{MASK}", degenerate_masks="error")


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["two words", "a\nb", "a.b", "%s{0}", "😀"])
def test_any_name_works_and_is_one_line_in_an_error(root, stem):
    (root / IMAGES / IMAGE).rename(root / IMAGES / f"{stem}.JPG")
    (root / MASKS / MASK).rename(root / MASKS / f"{stem}_segmentation.PNG")
    assert stem in load_silently(root).train.ids
    (root / MASKS / f"{stem}_segmentation.PNG").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_silently(root)
    assert len(str(caught.value).splitlines()) == 3 and str(caught.value).encode()


COMPOSED, DECOMPOSED = "M\u00e9lanome", "Me\u0301lanome"  # as macOS writes it


@pytest.mark.parametrize(("image", "mask"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, DECOMPOSED)])
def test_names_that_differ_in_unicode_form_alone_are_one_name(root, image, mask):
    (root / IMAGES / IMAGE).rename(root / IMAGES / f"{image}.jpg")
    (root / MASKS / MASK).rename(root / MASKS / f"{mask}_segmentation.png")
    assert load_silently(root).train.ids == ("B", COMPOSED)
    (other,) = {COMPOSED, DECOMPOSED} - {image}
    (root / IMAGES / f"{other}.jpg").write_bytes(JPEG)
    with pytest.raises(DataError, match="several files of one name"):
        load_silently(root)


def test_a_name_that_is_no_utf8_is_refused_and_shown_escaped(root):
    (root / IMAGES / IMAGE).rename(root / IMAGES / "\udcff.jpg")
    (root / MASKS / MASK).rename(root / MASKS / "\udcff_segmentation.png")
    with pytest.raises(DataError, match="problems: 2\nfile's name") as caught:
        load_silently(root)
    assert f"{IMAGES}/\\udcff.jpg" in str(caught.value) and str(caught.value).encode()


def test_another_name_for_a_mask_is_refused(root):
    (root / MASKS / "A.png").write_bytes(MASK_PNG)
    assert_one_short_error(root, "mask's name (1)", f"{MASKS}/A.png")


def test_two_images_of_one_name_are_refused(root):
    (root / IMAGES / "A.png").write_bytes(JPEG)
    assert_one_short_error(root, "several files of one name (1)", f"{IMAGES}/A.png", f"{IMAGES}/A.jpg")


def test_an_id_in_two_splits_is_refused(root):
    for folder, name, data in zip(FOLDERS["test"], (IMAGE, MASK), (JPEG, MASK_PNG), strict=True):
        (root / folder / name).write_bytes(data)
    assert_one_short_error(root, "id in two splits (1)", "A: train and test")


@pytest.mark.parametrize(("folder", "name", "kind"), [(IMAGES, IMAGE, "image"), (MASKS, MASK, "mask")])
def test_a_missing_half_of_a_pair_is_named(root, folder, name, kind):
    (root / folder / name).unlink()
    assert_one_short_error(root, f"missing {kind} (1)", f"{folder}/{name}")


# --- what is no file -------------------------------------------------------------------------------------------------


SPECIAL = {
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "FIFO": (os.mkfifo, "a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "broken link": (lambda path: path.symlink_to("gone"), "No such file"),
    "loop of links": (lambda path: path.symlink_to(path.name), "oo many"),
}


@pytest.mark.parametrize(("folder", "name"), [(IMAGES, IMAGE), (MASKS, MASK)], ids=["image", "mask"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_named_and_never_waited_for(root, kind, folder, name):
    make, reason = SPECIAL[kind]
    (root / folder / name).unlink()
    make(root / folder / name)
    assert_one_short_error(root, "unreadable file (1)", f"{folder}/{name}: ", reason)


def test_links_to_files_and_folders_are_followed(root):
    (root / IMAGES / IMAGE).rename(root / "elsewhere")
    (root / IMAGES / IMAGE).symlink_to(root / "elsewhere")
    (root / MASKS).rename(root / "masks")
    (root / MASKS).symlink_to(root / "masks")
    assert torch.equal(load_silently(root).train.images[0], SOUND[0])


@pytest.mark.parametrize(
    ("folder", "kind", "text"),
    [
        (IMAGES, "missing", "there is no folder"),
        (MASKS, "empty", "holds no pictures"),
        (MASKS, "file", "there is no folder"),
    ],
)
def test_a_folder_that_is_none_is_named(root, folder, kind, text):
    (root / folder).rename(root / "away")
    if kind == "empty":
        (root / folder).mkdir()
    elif kind == "file":
        (root / folder).touch()
    assert_one_short_error(root, folder, text, "remedy: ")


def test_a_file_that_may_not_be_read_is_named(root, monkeypatch):
    real_open = Image.open

    def refuse(path, *args, **options):
        if Path(path).name == MASK:
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **options)

    monkeypatch.setattr(Image, "open", refuse)
    assert_one_short_error(root, "unreadable file (1)", f"/{MASK}: Permission denied")


def test_a_folder_that_may_not_be_listed_is_named(root, monkeypatch):
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == MASKS:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert_one_short_error(root, MASKS, "Permission denied", "remedy: ")


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"root": None}, "root"),
        ({"root": "~no-such-user-here/isic"}, "root"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 32.0}, "image_size"),
        ({"degenerate_masks": "Keep"}, "degenerate_masks"),
        ({"n_workers": 0}, "n_workers"),
        ({"n_workers": True}, "n_workers"),
        ({"cache_dir": 5}, "cache_dir"),
    ],
    ids=repr,
)
def test_a_bad_parameter_is_named(root, options, text):
    options = {"root": root, **options}
    error = ConfigError if text in ("root", "cache_dir") else ValueError
    assert_one_short_error(options.pop("root"), text, error=error, **options)


# --- identical pictures ----------------------------------------------------------------------------------------------


def repeat(root, n, split="val"):
    images, masks = FOLDERS[split]
    for i in range(n):
        (root / images / f"E{i:02}.jpg").write_bytes(JPEG)
        (root / masks / f"E{i:02}_segmentation.png").write_bytes(MASK_PNG)


def test_identical_images_in_two_splits_are_warned_of_at_each_opening(root):
    repeat(root, 1)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"A \(train\) = E00 \(val\); remedy: take one of each out") as warned:
            load_isic2018(root, 32)
        assert len(warned) == 1 and warned[0].filename == __file__


def test_identical_images_within_one_split_are_no_matter_of_evaluation(root):
    repeat(root, 2, "train")
    load_silently(root)


def random_split(n, seed, name):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, 2, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, masks, [f"{name}{i}" for i in range(n)])


def test_all_pairs_are_found_and_equal_sums_are_not_enough():
    train, val, test = random_split(4, 0, "a"), random_split(3, 1, "b"), random_split(3, 2, "c")
    val.images[2] = train.images[1]
    test.images[0] = train.images[1]
    test.images[1] = train.images[3].flip(1)  # rows are groups of eight bytes: the sums are equal, the pixels not
    assert picture_sums(test.images)[1] == picture_sums(train.images)[3]
    found = identical_pictures(Splits(train, val, test))
    expected = [("train", "a1", "val", "b2"), ("train", "a1", "test", "c0"), ("val", "b2", "test", "c0")]
    assert list(found.columns) == ["first_split", "first_id", "second_split", "second_id"]
    assert sorted(found.itertuples(index=False, name=None)) == sorted(expected)


# --- sums and checksums ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 5, 7), (3, 1, 1, 1), (0, 3, 8, 8)])
def test_sums_are_those_of_groups_of_eight_bytes(shape):
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = []
    for picture in pictures:
        data = picture.numpy().tobytes()
        data += bytes(-len(data) % 8)
        total = sum(int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)) % 2**64
        expected.append(total - 2**64 if total >= 2**63 else total)
    assert picture_sums(pictures).tolist() == expected


def test_sums_do_not_depend_on_how_the_tensor_lies_in_memory():
    pictures = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = picture_sums(pictures)
    shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), pictures.flatten()])[3:].view(3, 3, 8, 8)
    assert torch.equal(picture_sums(shifted), expected)
    assert torch.equal(picture_sums(pictures.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(picture_sums(pictures[1:]), expected[1:])


def test_every_single_bit_changes_the_checksum():
    split = random_split(2, 0, "a")
    sound = split.checksum
    assert len(sound) == 16 and Split(split.images.clone(), split.masks.clone(), split.ids).checksum == sound
    for pictures in (split.images, split.masks):
        flat = pictures.view(-1)
        for byte in range(len(flat)):
            bit = 1 << (byte % 8)
            flat[byte] ^= bit
            assert split.checksum != sound
            flat[byte] ^= bit
    assert split.checksum == sound


def test_ids_order_and_shape_change_the_checksum():
    split = random_split(2, 0, "a")
    others = [
        Split(split.images, split.masks, ("a0", "a2")),
        Split(split.images, split.masks, ("a0a", "1")),
        split.select([1, 0]),
        split.select([0]),
        Split(split.images.view(2, 3, 4, 16), split.masks.view(2, 1, 4, 16), split.ids),
    ]
    assert len({split.checksum, *(other.checksum for other in others)}) == 6
