"""Writes pictures/: small files of every kind that a picture can be, and the pixels that the reference makes of them.

    pip install pillow numpy torch torchvision transformers safetensors
    python make_images.py

`pictures/expected.safetensors` has per file `<file>.white`: what the reference's image processors see (Pillow opens and
`exif_transpose`s, transformers' `convert_to_rgb` lays transparency on white), and `<file>.drop`: Pillow's own
`convert("RGB")`, which drops the alpha channel. Both `[h, w, 3]`, uint8.
"""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import PIL
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from transformers.image_transforms import convert_to_rgb

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "pictures")
RNG = np.random.default_rng(3)
PHOTO = Image.open(os.path.join(HERE, "images", "china_131x87.png")).convert("RGB")


def photo(width, height):
    """Part of a photo: smooth and textured areas, odd sides where asked."""
    return PHOTO.crop((40, 20, 40 + width, 20 + height))


def colours(width, height):
    """Saturated noise in 4 x 4 blocks: hard for chroma upsampling and clamping."""
    small = RNG.integers(0, 2, (-(-height // 4), -(-width // 4), 3)) * 255
    return Image.fromarray(small.repeat(4, 0).repeat(4, 1)[:height, :width].astype(np.uint8))


def write(name, data):
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)


def save(name, image, **options):
    image.save(os.path.join(OUT, name), **options)


def encoded(image, **options):
    out = io.BytesIO()
    image.save(out, **options)
    return out.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, depth, color, palette=None, transparency=None, interlace=False):
    """A PNG file. samples: [h, w, channels] of `depth` bits."""
    height, width, channels = samples.shape

    def scanlines(part):
        out = b""
        for row in part:
            if depth == 16:
                packed = row.astype(">u2").tobytes()
            elif depth == 8:
                packed = row.astype(np.uint8).tobytes()
            else:
                bits = ((row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
                packed = np.packbits(bits.reshape(-1)).tobytes()
            out += b"\0" + packed
        return out

    if interlace:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        parts = [samples[y::dy, x::dx] for y, x, dy, dx in passes]
        data = b"".join(scanlines(p) for p in parts if p.size)
    else:
        data = scanlines(samples)
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))
    if palette is not None:
        out += chunk(b"PLTE", bytes(palette))
    if transparency is not None:
        out += chunk(b"tRNS", bytes(transparency))
    return out + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def samples(height, width, channels, depth):
    top = (1 << depth) - 1
    out = RNG.integers(0, top + 1, (height, width, channels))
    out.reshape(-1)[: 2] = [0, top]
    return out


def jpegs():
    for name, code in (("444", 0), ("422", 1), ("420", 2)):
        save(f"{name}.jpg", photo(61, 43), quality=90, subsampling=code)
        save(f"{name}_colours.jpg", colours(37, 50), quality=75, subsampling=code)
        save(f"{name}_progressive.jpg", photo(45, 35), quality=80, subsampling=code, progressive=True)
    # Other sampling factors of luma with as many blocks per unit: the picture is scrambled but valid.
    for name, code, old, new in (("440", 1, 0x21, 0x12), ("411", 2, 0x22, 0x41), ("410", 2, 0x22, 0x14)):
        data = bytearray(encoded(photo(64, 64), format="JPEG", quality=85, subsampling=code))
        at = data.index(b"\xff\xc0") + 11
        assert data[at] == old
        data[at] = new
        write(f"{name}.jpg", data)
    save("grey.jpg", photo(33, 29).convert("L"), quality=85)
    save("grey_progressive.jpg", photo(33, 29).convert("L"), quality=85, progressive=True)
    save("cmyk.jpg", photo(30, 22).convert("CMYK"), quality=85)
    save("rgb.jpg", photo(30, 22), quality=85, keep_rgb=True)
    save("restart.jpg", photo(50, 40), quality=85, subsampling=2, restart_marker_blocks=2)
    save("restart_progressive.jpg", photo(50, 40), quality=85, subsampling=2, restart_marker_blocks=3, progressive=True)
    save("coarse.jpg", photo(40, 40), quality=2, subsampling=2)
    save("fine.jpg", colours(40, 40), quality=100, subsampling=0, optimize=True)
    save("one_pixel.jpg", photo(1, 1), quality=90, subsampling=2)
    for width, height in ((1, 20), (20, 1), (2, 3), (3, 2), (17, 16), (16, 17)):
        save(f"size_{width}x{height}.jpg", photo(width, height), quality=90, subsampling=2)
    for i in range(1, 9):
        save(f"orientation_{i}.jpg", photo(20, 12), quality=90, subsampling=1, exif=exif(i))


def pngs():
    save("rgb.png", photo(40, 30))
    save("one_pixel.png", photo(1, 1))
    save("orientation_6.png", photo(20, 12), exif=exif(6))
    opacity = np.arange(256)[:, None].repeat(16, 1)
    levels = np.arange(0, 256, 17)[None, :].repeat(256, 0)
    save("grey_alpha.png", Image.fromarray(np.stack([levels, opacity], -1).astype(np.uint8)))
    rgba = np.dstack([np.array(photo(40, 30)), RNG.integers(0, 256, (30, 40), dtype=np.uint8)])
    save("rgba.png", Image.fromarray(rgba))
    for depth in (1, 2, 4, 8, 16):
        write(f"grey{depth}.png", png(samples(9, 13, 1, depth), depth, 0))
    write("grey8_key.png", png(samples(9, 40, 1, 8) & 3, 8, 0, transparency=[0, 2]))
    write("grey16_low.png", png(samples(9, 13, 1, 9), 16, 0))
    write("grey_alpha16.png", png(samples(9, 13, 2, 16), 16, 4))
    write("rgb16.png", png(samples(9, 13, 3, 16), 16, 2))
    write("rgba16.png", png(samples(9, 13, 4, 16), 16, 6))
    write("rgb_key.png", png(samples(9, 40, 3, 8) & 1, 8, 2, transparency=[0, 1, 0, 0, 0, 1]))
    for depth in (1, 2, 4, 8):
        palette = RNG.integers(0, 256, 3 << depth).tolist()
        write(f"palette{depth}.png", png(samples(9, 13, 1, depth), depth, 3, palette))
        write(f"palette{depth}_alpha.png", png(samples(9, 13, 1, depth), depth, 3, palette, [0, 100, 255][: 1 << depth]))
    write("interlaced_rgb.png", png(np.array(photo(21, 19)).astype(int), 8, 2, interlace=True))
    write("interlaced_palette4.png", png(samples(11, 21, 1, 4), 4, 3, RNG.integers(0, 256, 48).tolist(), interlace=True))
    write("interlaced_rgba16.png", png(samples(7, 5, 4, 16), 16, 6, interlace=True))


def webps():
    save("lossy.webp", photo(45, 35), quality=80)
    save("lossy_colours.webp", colours(38, 27), quality=60)
    save("lossless.webp", photo(31, 23), lossless=True)
    rgba = np.dstack([np.array(photo(40, 30)), RNG.integers(0, 256, (30, 40), dtype=np.uint8)])
    rgba[:10, :, 3] = 0
    save("lossy_alpha.webp", Image.fromarray(rgba), quality=80)
    save("lossless_alpha.webp", Image.fromarray(rgba), lossless=True, exact=True)
    save("orientation_5.webp", photo(20, 12), quality=80, exif=exif(5))
    save("animated.webp", photo(24, 20), save_all=True, append_images=[colours(24, 20)], duration=50, lossless=True)
    save("one_pixel.webp", photo(1, 1), lossless=True)


def gif(screen, frame, colour_bits=2, transparent=None, interlaced=False, background=0):
    """A GIF file with one frame of stored codes. screen: (w, h); frame: (left, top, indices [h, w])."""
    left, top, indices = frame
    height, width = indices.shape
    order = np.arange(height)
    if interlaced:
        order = np.concatenate([order[0::8], order[4::8], order[2::4], order[1::2]])
    # LZW with a clear code often enough that code size never grows.
    clear, size = 1 << colour_bits, colour_bits + 1
    codes, run = [], 0
    for value in indices[order].reshape(-1).tolist():
        if run == 0:
            codes.append(clear)
            run = (1 << size) - clear - 3
        codes.append(value)
        run -= 1
    codes.append(clear + 1)
    bits = sum(code << (size * i) for i, code in enumerate(codes))
    data = bits.to_bytes(-(-len(codes) * size // 8), "little")
    palette = bytes([10, 20, 30, 200, 40, 50, 60, 210, 70, 80, 90, 220])
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | (colour_bits - 1), background, 0) + palette
    if transparent is not None:
        out += b"\x21\xf9\x04\x01\0\0" + bytes([transparent, 0])
    out += b"\x2c" + struct.pack("<HHHHB", left, top, width, height, 0x40 if interlaced else 0) + bytes([colour_bits])
    for i in range(0, len(data), 255):
        part = data[i : i + 255]
        out += bytes([len(part)]) + part
    return out + b"\0\x3b"


def gifs():
    save("palette.gif", photo(40, 30).quantize(64))
    save("animated.gif", photo(24, 20).quantize(16), save_all=True, append_images=[colours(24, 20).quantize(8)])
    indices = RNG.integers(0, 4, (11, 14))
    write("transparent.gif", gif((14, 11), (0, 0, indices), transparent=2))
    write("interlaced.gif", gif((14, 11), (0, 0, indices), interlaced=True))
    write("part_transparent.gif", gif((20, 16), (3, 2, indices), transparent=1))
    write("part.gif", gif((20, 16), (3, 2, indices), background=1))
    write("rows.gif", gif((14, 16), (0, 2, indices), background=1))


def bmp(width, height, bits, rows, masks=None, header=40, compression=0):
    """A BMP file of given rows (already padded to 4 bytes). A negative height is top-down."""
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(rows), 2835, 2835, 0, 0)
    extra = struct.pack("<4I", *masks) if masks else b""
    info += extra + bytes(max(header - len(info) - len(extra), 0))
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + len(rows), 0, 0, 14 + len(info)) + info + rows


def bmps():
    save("rgb.bmp", photo(33, 20))
    save("grey.bmp", photo(33, 20).convert("L"))
    save("palette.bmp", photo(33, 20).quantize(32))
    save("bits.bmp", photo(33, 20).convert("1"))
    four = RNG.integers(0, 256, 4 * 6 * 5, dtype=np.uint8).tobytes()
    write("bgrx32.bmp", bmp(6, 5, 32, four))
    write("top_down.bmp", bmp(6, -5, 32, four))
    write("rgb555.bmp", bmp(6, 5, 16, four[:60]))
    write("bgra32.bmp", bmp(6, 5, 32, four, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=124, compression=3))


def main():
    os.makedirs(OUT, exist_ok=True)
    for old in os.listdir(OUT):
        os.remove(os.path.join(OUT, old))
    for make in (jpegs, pngs, webps, gifs, bmps):
        make()
    expected = {}
    warnings.simplefilter("ignore")
    for name in sorted(os.listdir(OUT)):
        image = ImageOps.exif_transpose(Image.open(os.path.join(OUT, name)))
        expected[f"{name}.white"] = np.ascontiguousarray(convert_to_rgb(image, return_numpy=True))
        expected[f"{name}.drop"] = np.ascontiguousarray(np.array(image.convert("RGB")))
    save_file(expected, os.path.join(OUT, "expected.safetensors"), metadata={"pillow": PIL.__version__})
    total = sum(os.path.getsize(os.path.join(OUT, f)) for f in os.listdir(OUT))
    print(len(expected) // 2, "pictures,", total, "bytes")


main()
