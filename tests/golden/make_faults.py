"""Damaged and unusual pictures that Pillow opens, and what it makes of them, for tests/preprocess/faults.rs.

usage: make_faults.py PICTURES OUT   (PICTURES is tests/golden/pictures, OUT tests/golden/faults)

Every picture gets a `.ref.png` beside it: `exif_transpose`, then `convert_to_rgb` of transformers. A picture that
Pillow refuses is not written but named. The pictures in `GIVEN` are not made here: their `.ref.png` alone is.
"""

import io
import os
import random
import struct
import sys
import warnings
import zlib

from PIL import Image, ImageOps

PICTURES, OUT = sys.argv[1:3]
GIVEN = """alpha_flag_noalph.webp bmp_off0.bmp cut50_eoi_ss0.jpg exif_after_idat.png exif_long.jpg exif_noflag.webp
exif_prefix.png mjpeg_no_dht.jpg no_iend.png raw_profile_exif.png rst_plus1.jpg stray_app.jpg trailing_junk.webp
xmp_itxt.png xmp_only.jpg""".split()
warnings.simplefilter("ignore")


def source(name):
    with open(os.path.join(PICTURES, name), "rb") as file:
        return file.read()


def reference(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "RGB":
        return image
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def write(name, data):
    data = bytes(data)
    try:
        image = reference(data)
    except Exception as error:
        print(f"{name}: refused: {type(error).__name__}: {error}")
        return
    with open(os.path.join(OUT, name), "wb") as file:
        file.write(data)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    with open(os.path.join(OUT, name + ".ref.png"), "wb") as file:
        file.write(out.getvalue())


# EXIF and XMP


def tiff(entries, order="<", extra=b""):
    """A TIFF header and one directory. entries: (tag, type, count, four bytes)."""
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LH", 8, len(entries))
    for tag, kind, count, value in entries:
        out += struct.pack(order + "HHL", tag, kind, count) + value.ljust(4, b"\0")
    return out + bytes(4) + extra


def orientation(value, kind=3, count=1, order="<"):
    letter = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 13: "L"}[kind]
    return tiff([(0x112, kind, count, struct.pack(f"{order}{letter}", value))], order)


def exif_kinds():
    value = struct.pack("<LL", 6, 1)
    yield "short", orientation(6)
    yield "big_endian", orientation(6, order=">")
    yield "long", orientation(8, kind=4)
    yield "long_big_endian", orientation(8, kind=4, order=">")
    yield "count2", tiff([(0x112, 3, 2, struct.pack("<HH", 3, 6))])
    yield "sbyte", orientation(5, kind=6)
    yield "sshort", orientation(7, kind=8)
    yield "float", orientation(2, kind=11)
    yield "rational", tiff([(0x112, 5, 1, struct.pack("<L", 26))], extra=value)
    yield "long_count2", tiff([(0x112, 4, 2, struct.pack("<L", 26))], extra=struct.pack("<LL", 6, 1))
    yield "byte", tiff([(0x112, 1, 1, b"\6")])
    yield "bogus_value", orientation(9)
    yield "twice", tiff([(0x112, 3, 1, b"\6\0"), (0x112, 3, 1, b"\3\0")])
    yield "after_bad_tag", tiff([(0x110, 2, 9999, struct.pack("<L", 5)), (0x112, 3, 1, b"\6\0")])
    yield "after_tag_outside", tiff([(0x110, 2, 9, struct.pack("<L", 999)), (0x112, 3, 1, b"\6\0")])
    yield "cut", orientation(6)[:-5]
    yield "twice_prefixed", b"Exif\0\0" * 2 + orientation(6)


def xmp(value, element=False):
    inner = f'<rdf:Description tiff:Orientation="{value}"/>'
    if element:
        inner = f"<rdf:Description><tiff:Orientation>{value}</tiff:Orientation></rdf:Description>"
    return f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF>{inner}</rdf:RDF></x:xmpmeta>".encode()


def app1(*bodies):
    return b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in bodies)


XAP = b"http://ns.adobe.com/xap/1.0/\0"


def jpeg_with(segments, base="size_17x16.jpg"):
    data = source(base)
    return data[:2] + segments + data[2:]


def png_chunks(data):
    at, out = 8, []
    while at < len(data):
        length = struct.unpack(">L", data[at : at + 4])[0]
        out.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return out


def png_of(chunks):
    out = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        out += struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))
    return out


def png_with(chunks, behind=False, base="grey4.png"):
    old = png_chunks(source(base))
    at = len(old) - 1 if behind else 1
    return png_of(old[:at] + chunks + old[at:])


def raw_profile(data):
    text = f"\nexif\n{len(data):8}\n".encode()
    digits = data.hex().encode()
    return text + b"".join(digits[i : i + 72] + b"\n" for i in range(0, len(digits), 72))


def riff(chunks, size=None):
    body = b"WEBP" + b"".join(kind + struct.pack("<L", len(b)) + b + bytes(len(b) % 2) for kind, b in chunks)
    return b"RIFF" + struct.pack("<L", len(body) if size is None else size) + body


def webp_chunks(data):
    at, out = 12, []
    while at < len(data):
        length = struct.unpack("<L", data[at + 4 : at + 8])[0]
        out.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return out


def vp8x(flags, width, height):
    return b"VP8X", struct.pack("<L", flags) + struct.pack("<L", width - 1)[:3] + struct.pack("<L", height - 1)[:3]


def orientations():
    for name, data in exif_kinds():
        write(f"exif_is_{name}.jpg", jpeg_with(app1(b"Exif\0\0" + data)))
    for name in ("short", "twice_prefixed"):
        data = dict(exif_kinds())[name]
        write(f"exif_{name}.png", png_with([(b"eXIf", data)]))
        write(f"exif_behind_{name}.png", png_with([(b"eXIf", data)], behind=True))
        picture = webp_chunks(source("lossless.webp"))
        write(f"exif_{name}.webp", riff([vp8x(8, 31, 23)] + picture + [(b"EXIF", data)]))
        write(f"exif_noflag_{name}.webp", riff([vp8x(0, 31, 23)] + picture + [(b"EXIF", data)]))
        write(f"exif_before_{name}.webp", riff([vp8x(8, 31, 23), (b"EXIF", data)] + picture))
        profile = raw_profile(data)
        write(f"raw_profile_text_{name}.png", png_with([(b"tEXt", b"Raw profile type exif\0" + profile)]))
        packed = b"Raw profile type exif\0\0" + zlib.compress(profile)
        write(f"raw_profile_packed_{name}.png", png_with([(b"zTXt", packed)], behind=name == "short"))
    write("exif_split.jpg", jpeg_with(app1(b"Exif\0\0" + orientation(6)[:12], b"Exif\0\0" + orientation(6)[12:])))
    lossless = webp_chunks(source("lossless.webp"))
    write("exif_prefixed.webp", riff([vp8x(8, 31, 23)] + lossless + [(b"EXIF", b"Exif\0\0" + orientation(6))]))
    write("raw_profile_app1.png", png_with([(b"tEXt", b"Raw profile type APP1\0" + raw_profile(orientation(6)))]))
    profile = b"Raw profile type exif\0" + raw_profile(orientation(6))
    write("exif_and_raw_profile.png", png_with([(b"eXIf", orientation(3)), (b"tEXt", profile)]))
    write("exif_text_key.png", png_with([(b"tEXt", b"exif\0" + orientation(6))]))
    for element in (False, True):
        tail = "_element" if element else ""
        text = xmp(6, element)
        write(f"xmp{tail}.jpg", jpeg_with(app1(XAP + text)))
        write(f"xmp{tail}.webp", riff([vp8x(4, 31, 23)] + webp_chunks(source("lossless.webp")) + [(b"XMP ", text)]))
        write(f"xmp_noflag{tail}.webp", riff([vp8x(0, 45, 35)] + webp_chunks(source("lossy.webp")) + [(b"XMP ", text)]))
        key = b"XML:com.adobe.xmp\0"
        write(f"xmp_text{tail}.png", png_with([(b"tEXt", key + text)]))
        write(f"xmp_packed{tail}.png", png_with([(b"zTXt", key + b"\0" + zlib.compress(text))], behind=element))
        write(f"xmp_international{tail}.png", png_with([(b"iTXt", key + b"\0\0\0\0" + text)], behind=element))
        write(f"xmp_itxt_packed{tail}.png", png_with([(b"iTXt", key + b"\1\0en\0\0" + zlib.compress(text))]))
    upright, none = orientation(1), tiff([(0x110, 3, 1, b"\1\0")])
    write("xmp_loses_to_exif.jpg", jpeg_with(app1(XAP + xmp(6), b"Exif\0\0" + upright)))
    text = b"XML:com.adobe.xmp\0\0\0\0\0"
    write("xmp_loses_to_exif.png", png_with([(b"iTXt", text + xmp(6)), (b"eXIf", orientation(3))]))
    both = [vp8x(12, 31, 23)] + lossless
    write("xmp_loses_to_exif.webp", riff(both + [(b"EXIF", orientation(8)), (b"XMP ", xmp(6))]))
    write("xmp_with_exif_without.jpg", jpeg_with(app1(b"Exif\0\0" + none, XAP + xmp(8))))
    write("xmp_with_exif_without.png", png_with([(b"eXIf", none), (b"iTXt", text + xmp(8))]))
    write("xmp_with_exif_without.webp", riff(both + [(b"EXIF", none), (b"XMP ", xmp(8))]))
    write("xmp_loses_to_bogus_exif.jpg", jpeg_with(app1(b"Exif\0\0" + orientation(9), XAP + xmp(8))))
    write("xmp_twice.jpg", jpeg_with(app1(XAP + xmp(6), XAP + xmp(3))))


# WebP containers


def webps():
    lossy, lossless = webp_chunks(source("lossy.webp")), webp_chunks(source("lossless.webp"))
    both = webp_chunks(source("lossy_alpha.webp"))[1:]
    alpha = webp_chunks(source("lossless_alpha.webp"))
    alpha = [c for c in alpha if c[0] == b"VP8L"]
    for name, chunks, size in (
        ("lossy", lossy, (45, 35)),
        ("lossless", lossless, (31, 23)),
        ("lossy_alpha", both, (40, 30)),
        ("lossless_alpha", alpha, (40, 30)),
    ):
        simple = name != "lossy_alpha"
        if simple:
            write(f"junk_{name}.webp", riff(chunks) + b"behind the picture there is a text")
        own = 16 * ("alpha" in name)
        long = b"EXIF" + struct.pack("<L", 5000) + b"short"
        write(f"junk_x_{name}.webp", riff([vp8x(own, *size)] + chunks) + b"behind the picture there is a text")
        write(f"long_metadata_{name}.webp", riff([vp8x(own | 8, *size)] + chunks) + long)
        for flags in (0x00, 0x08, 0x10, 0x24):
            write(f"flags_{flags:02x}_{name}.webp", riff([vp8x(flags, *size)] + chunks))
        write(f"unknown_chunk_{name}.webp", riff([vp8x(own, *size), (b"ABCD", b"odd")] + chunks))
    animated = webp_chunks(source("animated.webp"))
    write("junk_animated.webp", riff(animated) + b"behind the picture there is a text")
    for flags in (0x1E,):
        header = b"VP8X", struct.pack("<L", flags) + animated[0][1][4:]
        write(f"flags_{flags:02x}_animated.webp", riff([header] + animated[1:]))
    # A frame that is smaller than the canvas, with and without blending.
    for blend in (0, 2):
        part = b"".join(struct.pack("<L", v)[:3] for v in (2, 3, 39, 29, 50)) + bytes([blend])
        for name, chunks in (("lossless", alpha), ("lossy", both)):
            body = part + riff(chunks)[12:]
            rest = [(b"ANIM", b"\x10\x20\x30\xff\0\0"), (b"ANMF", body)]
            write(f"part_{blend}_{name}.webp", riff([vp8x(0x12, 48, 40)] + rest))
            write(f"part_noalpha_{blend}_{name}.webp", riff([vp8x(0x02, 48, 40)] + rest))


# JPEG streams


def scan_start(data, number=0):
    at = -1
    for _ in range(number + 1):
        at = data.index(b"\xff\xda", at + 1)
    return at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


def markers(data, at, codes=range(0xD0, 0xD8)):
    out = []
    while at + 1 < len(data):
        if data[at] == 0xFF and data[at + 1] in codes:
            out.append(at)
        at += 1
    return out


def jpegs():
    chosen = ("444.jpg", "420_colours.jpg", "grey.jpg", "cmyk.jpg", "restart.jpg", "444_progressive.jpg",
              "420_progressive.jpg", "grey_progressive.jpg", "restart_progressive.jpg")
    for name in chosen:
        data = source(name)
        if name in ("444.jpg", "444_progressive.jpg", "restart.jpg", "restart_progressive.jpg"):
            small = io.BytesIO()
            Image.open(io.BytesIO(data)).resize((37, 26)).save(
                small,
                "JPEG",
                subsampling=0,
                restart_marker_blocks=3 * ("restart" in name),
                progressive="progressive" in name,
            )
            data = small.getvalue()
        stem, start = name[:-4], scan_start(data)
        for part in (10, 35, 60, 85) if "progressive" in name else (50,):
            cut = start + (len(data) - start) * part // 100
            while data[cut - 1] == 0xFF or data[cut] == 0xFF:
                cut += 1
            write(f"cut{part}_{stem}.jpg", data[:cut] + b"\xff\xd9")
            if part in (50, 60):
                write(f"stray_app_{stem}.jpg", data[:cut] + b"\xff\xe5\0\6abcd" + data[cut:])
        scans = markers(data, 0, [0xDA])
        for i, at in enumerate(scans[1:], 1):
            if "progressive" in name and i in (1, 2, 3, 5, 8):
                write(f"scans{i}_{stem}.jpg", data[:at] + b"\xff\xd9")
        # Other bytes in the middle of the data.
        draw = random.Random(name)
        for n in range(1 if "gr" in name else 2):
            bad = bytearray(data)
            for _ in range(1 + 2 * n):
                at = draw.randrange(start, len(data) - 2)
                if 0xFF not in bad[at - 1 : at + 2]:
                    bad[at] = draw.randrange(0xFF)
            write(f"bad{n}_{stem}.jpg", bad)
    for name in ("restart.jpg", "restart_progressive.jpg"):
        small = io.BytesIO()
        Image.open(io.BytesIO(source(name))).resize((28, 20)).save(
            small, "JPEG", subsampling=0, restart_marker_blocks=1, progressive="progressive" in name
        )
        data, stem = small.getvalue(), name[:-4]
        found = markers(data, scan_start(data))
        for which in (0, 5):
            at = found[which]
            for shift in (1, 2, 4, 6, 7):
                bad = bytearray(data)
                bad[at + 1] = 0xD0 + (bad[at + 1] + shift) % 8
                write(f"rst{which}_{shift}_{stem}.jpg", bad)
            write(f"rst{which}_gone_{stem}.jpg", data[:at] + data[at + 2 :])
            write(f"rst{which}_reserved_{stem}.jpg", data[: at + 1] + b"\x30" + data[at + 2 :])
            write(f"rst{which}_app_{stem}.jpg", data[:at] + b"\xff\xe1\0\4ab" + data[at + 2 :])
            write(f"rst{which}_twice_{stem}.jpg", data[:at] + data[at : at + 2] + data[at:])
            if which + 1 < len(found):
                write(f"rst{which}_lost_{stem}.jpg", data[:at] + data[found[which + 1] :])
    for name in ("444.jpg", "420_colours.jpg"):
        data = source(name)
        # Motion JPEG: the standard tables are not in the file.
        plain = io.BytesIO()
        Image.open(io.BytesIO(data)).save(plain, "JPEG", quality=80, subsampling=0 if name == "444.jpg" else 2)
        plain = plain.getvalue()
        out, at = plain[:2], 2
        while plain[at + 1] != 0xDA:
            length = struct.unpack(">H", plain[at + 2 : at + 4])[0]
            if plain[at + 1] != 0xC4:
                out += plain[at : at + 2 + length]
            at += 2 + length
        write(f"no_dht_{name}", out + plain[at:])
        for ids in ((1, 1, 1), (0, 0, 0), (1, 1, 2)):
            bad = bytearray(data)
            frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
            for i, value in enumerate(ids):
                bad[frame + 10 + 3 * i] = value
                bad[scan + 5 + 2 * i] = value
            write(f"ids_{''.join(map(str, ids))}_{name}", bad)
        bad = bytearray(data)
        end = scan_start(data)
        bad[end - 3 : end] = bytes(3)
        write(f"sequential_zeros_{name}", bad)


# PNG


def pngs():
    for name in ("rgb.png", "interlaced_rgb.png", "grey16.png"):
        data = source(name)
        chunks = png_chunks(data)
        at = data.index(b"IDAT")
        length = struct.unpack(">L", data[at - 4 : at])[0]
        bad = bytearray(data)
        bad[at + 4 + length] ^= 0x55
        write(f"crc_{name}", bad)
        write(f"no_iend_{name}", data[:-12])
        write(f"no_iend_crc_{name}", data[: at + 4 + length])
        write(f"half_iend_{name}", data[:-6])
        write(f"no_adler_{name}", data[: at + 4 + length - 4])
        body = dict(chunks)[b"IDAT"]
        write(f"no_adler_sound_{name}", png_of([(k, b[:-4] if k == b"IDAT" else b) for k, b in chunks]))
        parts = [(b"IDAT", body[:9]), (b"IDAT", b""), (b"IDAT", body[9:])]
        write(f"split_{name}", png_of([c for c in chunks if c[0] not in (b"IDAT", b"IEND")] + parts + [(b"IEND", b"")]))
        parts.append((b"tEXt", b"a\0b"))
        parts.append((b"IDAT", b"junk"))
        others = [c for c in chunks if c[0] not in (b"IDAT", b"IEND")]
        write(f"idat_apart_{name}", png_of(others + parts + [(b"IEND", b"")]))
        write(f"unknown_critical_{name}", png_of(chunks[:1] + [(b"ABCD", b"x")] + chunks[1:]))
        write(f"junk_{name}", data + b"behind the picture")
        write(f"idat_junk_{name}", png_of([(k, b + b"junk" if k == b"IDAT" else b) for k, b in chunks]))
    header = lambda depth, color=3: struct.pack(">IIBBBBB", 4, 4, depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(4 * y, 4 * y + 4)) for y in range(4)))
    palette = bytes(random.Random(1).randrange(256) for _ in range(18))
    body = [(b"IHDR", header(8)), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b"")]
    write("palette_short.png", png_of(body))
    opacities = {"ten": bytes(range(0, 250, 25)), "key": b"\xff" * 8 + b"\0", "all": bytes(range(256)), "two": b"\x80\x40"}
    for name, values in opacities.items():
        write(f"palette_trns_{name}.png", png_of(body[:2] + [(b"tRNS", values)] + body[2:]))
    write("palette_odd.png", png_of([body[0], (b"PLTE", palette[:-1])] + body[2:]))
    write("palette_none.png", png_of([body[0]] + body[2:]))
    write("grey_trns_long.png", png_of([(b"IHDR", header(8, 0)), (b"tRNS", b"\0\3\0\4")] + body[2:]))


# GIF and BMP


def gif(palette_bits, palette, codes, transparent=None, local=None, screen=(4, 4), at=(0, 0), global_palette=True):
    """One frame of 4 x 4 codes, each after a clear code."""
    bits = "".join("".join(format(c, "09b")[::-1] for c in (256, code)) for code in codes) + format(257, "09b")[::-1]
    data = bytes(int(bits[i : i + 8].ljust(8, "0")[::-1], 2) for i in range(0, len(bits), 8))
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, (0x80 | palette_bits - 1) if global_palette else 0, 0, 0)
    out += palette if global_palette else b""
    if transparent is not None:
        out += b"\x21\xf9\x04\x01\0\0" + bytes([transparent, 0])
    flags = 0 if local is None else 0x80 | palette_bits - 1
    out += b"\x2c" + struct.pack("<HHHHB", *at, 4, 4, flags) + (local or b"") + b"\x08"
    return out + bytes([len(data)]) + data + b"\0\x3b"


def gifs():
    codes = list(range(16))
    colours = bytes(random.Random(2).randrange(256) for _ in range(12))
    ramp = bytes(v for v in range(4) for _ in range(3))
    write("beyond.gif", gif(2, colours, codes))
    write("beyond_transparent.gif", gif(2, colours, codes, transparent=9))
    write("beyond_part.gif", gif(2, colours, codes, transparent=9, screen=(7, 6), at=(1, 2)))
    write("beyond_local.gif", gif(2, colours, codes, local=colours[::-1]))
    write("beyond_ramp.gif", gif(2, ramp, codes))
    write("beyond_ramp_transparent.gif", gif(2, ramp, codes, transparent=9, screen=(7, 6), at=(1, 2)))
    write("beyond_local_ramp.gif", gif(2, colours, codes, local=ramp))
    write("no_palette.gif", gif(2, colours, codes, global_palette=False))
    write("no_palette_part.gif", gif(2, colours, codes, global_palette=False, screen=(7, 6), at=(1, 2)))


def bmps():
    for name in ("rgb.bmp", "palette.bmp", "bits.bmp", "grey.bmp", "bgrx32.bmp", "top_down.bmp", "bgra32.bmp"):
        data = bytearray(source(name))
        data[10:14] = bytes(4)
        write(f"offset_0_{name}", data)
    # Masks behind a header of 40 bytes; two-byte pixels.
    data = bytearray(source("bgrx32.bmp"))
    masks = struct.pack("<3L", 0xFF0000, 0xFF00, 0xFF)
    data[30:34] = struct.pack("<L", 3)
    data[10:14] = bytes(4)
    write("offset_0_masks.bmp", data[:54] + masks + data[54:])
    data = bytearray(source("palette.bmp"))
    data[10:14] = struct.pack("<L", 54)
    write("offset_header_palette.bmp", data)
    data = bytearray(source("rgb.bmp"))
    data[26] = 7
    write("planes.bmp", data)
    write("last_padding_missing.bmp", source("rgb.bmp")[:-1])
    core = b"BM" + bytes(8) + struct.pack("<L", 0) + struct.pack("<LHHHH", 12, 3, 2, 1, 24) + bytes(range(24))
    write("offset_0_core.bmp", core)


def main():
    for old in os.listdir(OUT):
        if old not in GIVEN:
            os.remove(os.path.join(OUT, old))
    for make in (orientations, webps, jpegs, pngs, gifs, bmps):
        make()
    for name in GIVEN:
        with open(os.path.join(OUT, name), "rb") as file:
            write(name, file.read())
    total = sum(os.path.getsize(os.path.join(OUT, f)) for f in os.listdir(OUT))
    print(len(os.listdir(OUT)) // 2, "pictures,", total, "bytes")


main()
