"""Decoding: the same pixels from every format, and one sentence for every file that is no image."""

import contextlib
import io
import struct
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from attar.data.decode import MAX_PIXELS, EncodedImage, open_image, torchcodec_jpeg
from attar.data.playground import render_scene
from attar.errors import DecodeError

SCENE = render_scene(0, 4, size=64).image[:47, :61]  # (47, 61, 3): odd sides, no symmetry


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data) -> EncodedImage:
    return open_image(data, name="x.img")


def all_pixels(image: EncodedImage):
    return np.asarray(image.resized(None, image.size))


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def png(width, height, *, depth=8, colour=2, rows=b""):
    """A PNG file written by hand, for headers and sample depths that Pillow does not write."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bmp_header(width, height):
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def photo(width, height, seed=0):
    """A picture with detail at all scales, so that a shift by one pixel shows."""
    rng = np.random.default_rng(seed)
    coarse, fine = (rng.integers(0, 256, (height // step, width // step, 3), dtype=np.uint8) for step in (40, 6))
    coarse, fine = (Image.fromarray(a).resize((width, height), Image.Resampling.BICUBIC) for a in (coarse, fine))
    return Image.blend(coarse, fine, 0.4)


def resized_by_pillow(image, box, size):
    """The rows scaled first, then the columns, which Pillow did until version 13 for every image."""
    rows = image.resize((size[0], image.height), Image.Resampling.BICUBIC, box=(box[0], 0, box[2], image.height))
    return rows.resize(size, Image.Resampling.BICUBIC, box=(0, box[1], size[0], box[3]))


def difference(a, b):
    """Mean absolute difference in grey levels."""
    return np.abs(np.asarray(a, dtype=np.int64) - np.asarray(b, dtype=np.int64)).mean()


# --- pixels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_back_every_pixel(kind, options):
    image = opened(encode(Image.fromarray(SCENE), kind, **options))
    assert image.size == (61, 47)
    np.testing.assert_array_equal(all_pixels(image), SCENE)


def test_jpeg_at_full_size_equals_pillow():
    data = encode(Image.fromarray(SCENE), "JPEG", quality=85)
    np.testing.assert_array_equal(all_pixels(opened(data)), np.asarray(Image.open(io.BytesIO(data))))


def test_decoded_pixels_are_accepted_in_place_of_bytes():
    image = opened(SCENE)  # not contiguous
    assert image.size == (61, 47)
    np.testing.assert_array_equal(all_pixels(image), SCENE)
    expected = resized_by_pillow(Image.fromarray(SCENE), (3.5, 2, 40, 30.25), (8, 9))
    np.testing.assert_array_equal(np.asarray(image.resized((3.5, 2, 40, 30.25), (8, 9))), np.asarray(expected))


@pytest.mark.parametrize("pixels", [SCENE[..., 0], SCENE / 255, SCENE[..., :2], SCENE[:0], SCENE.astype(np.int64)])
def test_arrays_of_another_kind_are_refused_with_their_shape(pixels):
    with pytest.raises(DecodeError, match=r"x\.img: the array is .*uint8 \(H, W, 3\)"):
        opened(pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF"])
def test_grey_becomes_three_equal_channels(kind):
    grey = Image.fromarray(SCENE).convert("L")
    pixels = all_pixels(opened(encode(grey, kind)))
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(grey)[..., None], 3, axis=2))


def test_bilevel_images_are_black_and_white_and_antialiased_when_shrunk():
    checks = Image.fromarray((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)).convert("1", dither=0)
    image = opened(encode(checks, "PNG"))
    assert set(np.unique(all_pixels(image))) == {0, 255}
    inner = np.asarray(image.resized(None, (8, 8)))[2:-2, 2:-2]
    assert abs(inner.astype(int) - 127).max() <= 3  # nearest-neighbour sampling would leave 0 or 255


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP"), ("LA", "PNG"), ("LA", "TIFF"), ("PA", "TIFF")],
)
def test_transparency_is_dropped_and_hidden_colours_are_kept(mode, kind):
    colour = Image.fromarray(SCENE).convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[mode])
    expected = np.asarray(colour.convert("RGB"))
    image = colour.convert(mode)
    image.putalpha(Image.fromarray((np.arange(47 * 61).reshape(47, 61) % 3 * 127).astype(np.uint8)))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = opened(encode(image, kind, **options))
    np.testing.assert_array_equal(all_pixels(found), expected)
    opaque = opened(expected).resized(None, (20, 15))  # where alpha took part, hidden colours would weigh less
    np.testing.assert_array_equal(np.asarray(found.resized(None, (20, 15))), np.asarray(opaque))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 250, 10))])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_with_and_without_transparency_give_their_colours(kind, transparency):
    palette = Image.fromarray(SCENE).quantize(25)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(all_pixels(opened(encode(palette, kind))), expected)
    if isinstance(transparency, int) or kind == "PNG":
        data = encode(palette, kind, transparency=transparency)
        np.testing.assert_array_equal(all_pixels(opened(data)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_grey_keeps_the_high_byte(kind, order):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = Image.fromarray(values.astype(order)) if order == "<u2" or kind == "TIFF" else Image.fromarray(values)
    pixels = all_pixels(opened(encode(image, kind)))
    np.testing.assert_array_equal(pixels[..., 1], (values // 256).astype(np.uint8))  # clipping would give 255


def test_sixteen_bit_colour_keeps_the_high_byte_too():
    samples = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    pixels = all_pixels(opened(png(7, 5, depth=16, rows=rows)))
    np.testing.assert_array_equal(pixels, (samples // 256).astype(np.uint8))


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 127), (0, 128, 128))],
)
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_inks_become_the_colours_they_print(kind, ink, colour):
    pixels = all_pixels(opened(encode(Image.new("CMYK", (16, 16), ink), kind)))
    np.testing.assert_allclose(pixels[8, 8].astype(int), colour, atol=2)  # inverted inks would be far off


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_an_animation_the_first_frame_counts(kind, options):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(all_pixels(opened(data)), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "JPEG", "WEBP"])
def test_one_pixel_fills_any_size(kind):
    image = opened(encode(Image.new("RGB", (1, 1), (200, 200, 200)), kind))
    assert image.size == (1, 1)
    assert difference(image.resized(None, (8, 8)), 200) <= 2


# --- orientation -------------------------------------------------------------------------------------------------

UPRIGHT = {  # what a viewer must show for stored pixels `a` with each orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_exif_orientation_is_applied_exactly(orientation, kind, options):
    image = opened(encode(Image.fromarray(SCENE), kind, exif=exif(orientation), **options))
    expected = UPRIGHT[orientation](SCENE)
    assert image.size == (expected.shape[1], expected.shape[0])
    np.testing.assert_array_equal(all_pixels(image), expected)
    box = (5, 9, 31, 44)  # in the upright image, at its own scale: a plain cut
    np.testing.assert_array_equal(np.asarray(image.resized(box, (26, 35))), expected[9:44, 5:31])


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_boxes_hit_the_same_place_in_a_turned_jpeg_decoded_at_a_quarter(orientation):
    stored = photo(333, 271)  # no multiple of 4 or 8, so the last reduced pixel is only partly covered
    data = encode(stored, "JPEG", quality=95, exif=exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    width, height = upright.size
    box = (width - 209, height - 213, width - 1, height - 1)
    found = opened(data).resized(box, (52, 52))
    sharp = upright.resize((52, 52), Image.Resampling.BICUBIC, box=box)
    assert difference(found, sharp) < 2.5
    shifted = upright.resize((52, 52), Image.Resampling.BICUBIC, box=[edge + 1 for edge in box])
    assert difference(found, sharp) < 0.75 * difference(found, shifted)  # one stored pixel is a quarter of a pixel here


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\x9c" * 40])
def test_a_damaged_exif_block_does_not_cost_the_image(block):
    data = encode(Image.fromarray(SCENE), "JPEG", exif=block)
    assert opened(data).size == (61, 47)


def test_an_exif_text_that_is_not_hexadecimal_does_not_cost_the_image():
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n 4\nzz")
    np.testing.assert_array_equal(all_pixels(opened(encode(Image.fromarray(SCENE), "PNG", pnginfo=text))), SCENE)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_orientations_that_do_not_exist_count_as_none(value):
    data = encode(Image.fromarray(SCENE), "PNG", exif=exif(value))
    assert opened(data).size == (61, 47)
    np.testing.assert_array_equal(all_pixels(opened(data)), SCENE)


# --- scaled decoding ---------------------------------------------------------------------------------------------


def test_a_jpeg_is_decoded_at_reduced_scale_only_where_pixels_suffice():
    data = encode(photo(640, 480), "JPEG", quality=92)
    full = Image.open(io.BytesIO(data))

    def gap(box, size):
        return difference(opened(data).resized(box, size), resized_by_pillow(full, box, size))

    assert gap((0, 0, 447, 480), (224, 224)) == 0  # 447 / 2 < 224: full size, bit by bit
    assert gap((0, 0, 448, 447), (224, 224)) == 0
    assert 0 < gap((0, 0, 448, 448), (224, 224)) < 2.5  # half size
    assert 0 < gap((3.5, 7, 630, 470), (115, 115)) < 2.5  # a quarter
    assert 0 < gap((0, 0, 640, 480), (60, 60)) < 2.5  # an eighth


def test_what_a_handle_decoded_before_does_not_change_what_it_returns():
    data = encode(photo(500, 375), "JPEG", quality=90)
    asked = [((0, 0, 500, 375), (60, 45)), ((10, 20, 300, 300), (224, 224)), ((0, 0, 500, 375), (200, 150))]
    shared = opened(data)
    for box, size in [*asked, *reversed(asked)]:
        fresh = opened(data).resized(box, size)
        np.testing.assert_array_equal(np.asarray(shared.resized(box, size)), np.asarray(fresh))


@pytest.mark.parametrize("size", [(20, 15), (7, 90), (90, 7), (9, 2), (32, 32), (61, 47)])
@pytest.mark.parametrize(
    "box", [(0, 0, 61, 47), (5, 20, 55, 30), (4.25, 3, 17.5, 20.75), (60, 46, 61, 47), (0, 12, 61, 13)]
)
def test_resizing_is_antialiased_bicubic_with_the_filter_reaching_over_the_edge_of_the_box(box, size):
    """Bit by bit, in any version of Pillow: only as many rows as the filter sees are computed."""
    image = Image.fromarray(SCENE)
    found = opened(encode(image, "PNG")).resized(box, size)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(resized_by_pillow(image, box, size)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_torchcodec_and_pillow_give_the_same_pixels(mode, subsampling, progressive):
    pytest.importorskip("torchcodec", reason="the extra `decode` is not installed")
    decode = torchcodec_jpeg()
    assert decode is not None, "torchcodec is installed but does not decode JPEG, or not as Pillow does"
    picture = photo(333, 271).convert(mode)
    data = encode(picture, "JPEG", quality=88, subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(all_pixels(opened(data)), expected)


# --- cut for training --------------------------------------------------------------------------------------------


PHOTO = encode(photo(500, 375), "PNG")


def cut_by_pillow(data, box, size):
    return Image.open(io.BytesIO(data)).convert("RGB").crop(box).resize(size, Image.Resampling.BICUBIC)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    left=st.integers(0, 490),
    top=st.integers(0, 365),
    width=st.integers(1, 500),
    height=st.integers(1, 375),
    size=st.tuples(st.integers(1, 224), st.integers(1, 224)),
)
def test_a_cut_is_pillows_crop_and_resize_within_rounding(left, top, width, height, size):
    box = (left, top, min(left + width, 500), min(top + height, 375))
    found = opened(PHOTO).cut(box, size)
    assert (found.mode, found.size) == ("RGB", size)
    expected = cut_by_pillow(PHOTO, box, size)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 2
    assert difference(found, expected) < 0.3


def test_a_cut_of_a_jpeg_at_reduced_scale_is_where_it_should_be():
    data = encode(photo(1200, 900), "JPEG", quality=92)
    rng = np.random.default_rng(0)
    gaps, shifted = [], []
    for _ in range(12):
        width, height = rng.integers(460, 1000), rng.integers(460, 880)
        left, top = rng.integers(4, 1200 - width), rng.integers(4, 900 - height)
        box = tuple(map(int, (left, top, left + width, top + height)))
        found = opened(data).cut(box, (224, 224))
        gaps.append(difference(found, cut_by_pillow(data, box, (224, 224))))
        aside = tuple(edge - 4 for edge in box)
        shifted.append(difference(found, cut_by_pillow(data, aside, (224, 224))))
    assert np.mean(gaps) < 4
    assert np.mean(gaps) < 0.6 * np.mean(shifted)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_cuts_of_turned_images_are_turned(orientation):
    data = encode(Image.fromarray(SCENE), "PNG", exif=exif(orientation))
    found = opened(data).cut((5, 9, 31, 44), (26, 35))  # at its own scale: a plain cut
    np.testing.assert_array_equal(np.asarray(found), UPRIGHT[orientation](SCENE)[9:44, 5:31])


def test_a_cut_of_a_grey_image_is_grey_in_three_channels():
    data = encode(photo(90, 70).convert("L"), "PNG")
    found = np.asarray(opened(data).cut((10, 5, 80, 60), (32, 32))).astype(int)
    assert (found == found[..., :1]).all()
    assert np.abs(found - np.asarray(cut_by_pillow(data, (10, 5, 80, 60), (32, 32)))).max() <= 2


def test_what_was_cut_before_does_not_change_what_is_cut():
    shared = opened(PHOTO)
    first = np.asarray(shared.cut((20, 10, 300, 200), (64, 64))).copy()
    shared.cut((0, 0, 500, 375), (500, 375))
    shared.resized(None, (32, 32))
    np.testing.assert_array_equal(np.asarray(shared.cut((20, 10, 300, 200), (64, 64))), first)


# --- files that are no image -------------------------------------------------------------------------------------

JPEG = encode(photo(120, 90), "JPEG")
BROKEN = {
    "no bytes": (b"", r"is empty \(0 bytes\)"),
    "text": (b"hello, this is not an image\n" * 20, r"not a readable JPEG, PNG, .* begins with b'hello, t'"),
    "only a magic number": (JPEG[:3], "not a readable"),
    "JPEG cut in half": (JPEG[: len(JPEG) // 2], "cannot be decoded .*truncated"),
    "JPEG without its last bytes": (JPEG[:-20], "cannot be decoded .*truncated"),
    "PNG cut in half": (encode(photo(120, 90), "PNG")[:9000], "cannot be decoded"),
    "GIF cut in half": (encode(photo(120, 90), "GIF")[:2000], "cannot be decoded"),
    "WebP cut in half": (encode(photo(120, 90), "WEBP")[:500], "not a readable|cannot be decoded"),
    "JPEG 2000": (encode(photo(32, 32), "JPEG2000"), "not a readable"),
    "PCX": (encode(photo(32, 32), "PCX"), "not a readable"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable"),
    "float samples": (encode(Image.new("F", (9, 9), 0.5), "TIFF"), "32-bit samples, mode F, is unknown"),
    "32-bit integers": (encode(Image.new("I", (9, 9), 70000), "TIFF"), "32-bit samples, mode I, is unknown"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_unreadable_file_gives_one_sentence_with_its_name(case):
    data, reason = BROKEN[case]
    with pytest.raises(DecodeError, match=reason) as caught:
        all_pixels(opened(data))
    message = str(caught.value)
    assert message.startswith("x.img: ")
    assert message.count("x.img") == 1
    assert message.endswith(".")
    assert "\n" not in message
    assert "object at" not in message


@pytest.mark.parametrize("side", [9_000, 10_000, 20_000])  # below Pillow's warning, above it, and above its error
def test_an_image_above_the_limit_is_refused_by_its_header_alone(side, recwarn):
    data = png(side, side)  # there is not one row of pixels in this file, so decoding it would say something else
    assert len(data) < 100
    with pytest.raises(DecodeError, match=rf"x\.img: .*{side * side:,} pixels, .*{MAX_PIXELS:,}.*Try"):
        opened(data)
    assert not recwarn.list


def test_the_limit_itself_is_allowed():
    assert opened(bmp_header(8000, 8000)).size == (8000, 8000)
    with pytest.raises(DecodeError, match="64,008,000"):
        opened(bmp_header(8001, 8000))


SOUND = {kind: encode(photo(40, 30), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(kind=st.sampled_from(sorted(SOUND)), data=st.data())
def test_a_damaged_file_gives_pixels_or_a_decode_error_and_no_warning(kind, data):
    damaged = bytearray(SOUND[kind][: data.draw(st.integers(1, len(SOUND[kind])))])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 200)))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        assert opened(bytes(damaged)).resized(None, (8, 8)).mode == "RGB"


def test_threads_leave_the_warning_filters_as_they_were():
    before, interval = list(warnings.filters), sys.getswitchinterval()
    threads = [threading.Thread(target=lambda: [opened(JPEG) for _ in range(150)]) for _ in range(4)]
    sys.setswitchinterval(1e-6)  # threads take turns often enough to meet in the middle of a header
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before
