"""Image files that cannot be read, and why."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def broken_files(folder: Path) -> dict[str, str]:
    """File name -> what the reason must say."""
    good = folder / "good.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(good)
    Image.fromarray(pixels).save(folder / "whole.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "short.jpg").write_bytes(good.read_bytes()[:-300])
    (folder / "short.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    (folder / "huge.png").write_bytes(png_header(20_000, 6_000))
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(folder / "wide.tif")
    good.unlink()
    (folder / "whole.png").unlink()
    return {
        "empty.jpg": "0 bytes",
        "text.png": "not an image",
        "short.jpg": "truncated",
        "short.png": "truncated",
        "huge.png": "20000 x 6000 pixels",
        "bomb.png": "100 megapixels",
        "moving.gif": "2 frames",
        "pages.tif": "2 frames",
        "float.tif": "floating-point",
        "wide.tif": "32-bit",
        "missing.jpg": "no such file",
    }
