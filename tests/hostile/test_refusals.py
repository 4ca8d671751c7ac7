"""Hostile inputs: a file or a name, the command that meets it, and the line that it must say. Nothing is trained."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from support.broken_images import png_header
from support.hostile import Case, check, folders, images, linked, pipe, table, text, together
from support.masked_runs import write_pairs


def PAIRS(root: Path) -> None:  # noqa: N802 (as the others)
    write_pairs(root / "d", 8)


FOUR = images("a.png", "b.png", "c/a.png", "c/b.png")
NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
MANY = [(f"{i}.png", "xy"[i % 2]) for i in range(20)]
SPLIT = "path,label,split"
SPACED = ("x", " x ", "y", "y ")
COCO = json.dumps({"images": [{"id": i, "file_name": f"{i:012}.jpg"} for i in range(8_000)]})

# the fault that was there -> the case
CASES: dict[str, Case] = {
    # One file under two names stood in two splits, or had two labels, without a word.
    "a.png and ./a.png": Case(
        together(FOUR, table(("a.png", "x", "train"), ("b.png", "y", "val"), ("./a.png", "x", "test"), columns=SPLIT)),
        "data m.csv", 2, ("m.csv line 4: ./a.png is already in line 2 as a.png; remove one",),
    ),
    "c/a.png and c//a.png": Case(
        together(FOUR, table(("c/a.png", "x"), ("b.png", "y"), ("c//a.png", "y"))),
        "data m.csv", 2, ("line 4: c//a.png is already in line 2 as c/a.png",),
    ),
    "c/a.png and c/../c/a.png": Case(
        together(FOUR, table(("c/a.png", "x"), ("b.png", "y"), ("c/../c/a.png", "y"))),
        "data m.csv", 2, ("line 4: c/../c/a.png is already in line 2 as c/a.png",),
    ),
    "a file and a link to it": Case(
        together(FOUR, linked("l.png", "a.png"), table(("a.png", "x"), ("b.png", "y"), ("l.png", "y"))),
        "data m.csv", 2, ("line 4: l.png is already in line 2 as a.png",),
    ),
    "missing, under two names": Case(
        together(FOUR, table(("gone.png", "x"), ("b.png", "y"), ("./gone.png", "y"))),
        "data m.csv", 2, ("line 4: ./gone.png is already in line 2 as gone.png",),
    ),
    # The message spoke of too few images, where most of the files were missing.
    "16 of 20 files missing": Case(
        together(images("0.png", "1.png", "2.png", "3.png"), table(*MANY)),
        "data m.csv", 2, ("16 of 20 images do not exist, the first: 4.png: no such file",), ("too few",),
    ),
    "12 of 20 files broken": Case(
        together(images(*(f"{i}.png" for i in range(8))), *(text(f"{i}.png", "x") for i in range(8, 20)), table(*MANY)),
        "data m.csv", 2, ("12 of 20 images cannot be read, the first: 8.png: not an image",), ("too few",),
    ),
    # Missing values became classes.
    **{
        f"a label {label!r}": Case(
            together(FOUR, table(("a.png", "x"), ("b.png", label))), "data m.csv", 2, ("m.csv line 3: label is",)
        )
        for label in ("NaN", "nan", "NULL", "<NA>", "", "  ")
    },
    "a label NaN in JSON": Case(
        together(FOUR, text("m.jsonl", '{"path": "a.png", "label": "x"}\n{"path": "b.png", "label": NaN}\n')),
        "data m.jsonl", 2, ("m.jsonl line 2: label is nan",),
    ),
    "a blank label in JSON": Case(
        together(FOUR, text("m.jsonl", '{"path": "a.png", "label": "x"}\n{"path": "b.png", "label": " "}\n')),
        "data m.jsonl", 2, ("m.jsonl line 2: label is blank",),
    ),
    # JSON lines kept the spaces that CSV strips, and a class had two spellings.
    "spaces around a label": Case(
        together(
            images(*(f"{i}.png" for i in range(8))),
            text("m.jsonl", "\n".join(json.dumps({"path": f"{i}.png", "label": SPACED[i % 4]}) for i in range(8))),
        ),
        "data m.jsonl", 0, ("2 classes",),
    ),
    "one class in two forms of Unicode": Case(
        together(
            images(*(f"d/train/{NFC}/{i}.png" for i in range(4)), *(f"d/test/{NFD}/{i}.png" for i in range(4))),
            images(*(f"d/{split}/tea/{i}.png" for split in ("train", "test") for i in range(4))),
        ),
        "data d", 0, ("2 classes", NFC), (NFD,),
    ),
    "a mask's name in another form of Unicode": Case(
        together(
            PAIRS,
            lambda root: (root / "d/images/0.png").rename(root / f"d/images/{NFC}.png"),
            lambda root: (root / "d/masks/0.png").rename(root / f"d/masks/{NFD}.png"),
        ),
        "data d", 0, ("all 36 x 40 pixels",), ("without a mask",),
    ),
    "classes.json with a byte-order mark": Case(
        together(PAIRS, text("d/classes.json", b'\xef\xbb\xbf["sky", "sea", "land"]')),
        "data d", 0, ("sky", "sea", "land"),
    ),
    # The line was as long as the file.
    "a COCO file for classes.json": Case(
        together(PAIRS, text("d/classes.json", COCO)),
        "data d", 2, ("d/classes.json", "is not text; name the class"),
    ),
    "a COCO file for a manifest": Case(text("m.jsonl", COCO), "data m.jsonl", 2, ("m.jsonl has no column",)),
    # Faults in snella: a file that Python itself refuses.
    "JSON without an end": Case(text("m.jsonl", "[" * 90_000 + "]" * 90_000), "data m.jsonl", 2, ("line 1: not JSON",)),
    "a number without an end": Case(
        together(FOUR, text("m.jsonl", f'{{"path": "a.png", "label": {"9" * 5_000}}}\n')),
        "data m.jsonl", 2, ("line 1: not JSON",),
    ),
    "digits without an end": Case(
        together(FOUR, table(("a.png", "9" * 5_000), ("b.png", "1"))),
        "data m.csv", 2, ("too few",),
    ),
    "a value without an end": Case(
        together(PAIRS, text("d/classes.json", json.dumps({"9" * 5_000: "a", "1": "b"}))),
        "data d", 2, ("is out of range; use a whole number",),
    ),
    "half a character in a path": Case(
        together(FOUR, text("m.jsonl", '{"path": "\\ud800.png", "label": "x"}\n')),
        "data m.jsonl", 2, ("line 1: path is '\\ud800.png', which is not text",),
    ),
    "a zero byte in a path": Case(
        together(FOUR, text("m.jsonl", '{"path": "a\\u0000.png", "label": "x"}\n')),
        "data m.jsonl", 2, ("line 1: path is 'a\\x00.png', which is not text",),
    ),
    "a name twice in JSON": Case(
        together(FOUR, text("m.jsonl", '{"path": "a.png", "label": "x", "label": "y"}\n')),
        "data m.jsonl", 2, ("m.jsonl line 1: label is there twice; keep one",),
    ),
    "a value twice in classes.json": Case(
        together(PAIRS, text("d/classes.json", '{"0": "sky", "1": "sea", "1": "land"}')),
        "data d", 2, ("d/classes.json cannot be read: 1 is there twice",),
    ),
    # To open a pipe waited for ever.
    "a pipe among images": Case(
        together(folders(x=4, y=4), pipe("d/x/p.png")), "data d", 0, ("d/x/p.png: not a file",)
    ),
    "a device among images": Case(
        together(folders(x=4, y=4), linked("d/x/null.png", "/dev/zero")), "data d", 0, ("d/x/null.png: not a file",)
    ),
    "a folder called as an image": Case(
        together(images(*(f"{i}.png" for i in range(18)), "18.png/a.png", "19.png"), table(*MANY)),
        "data m.csv", 0, ("1 unreadable images left out:", "18.png: a folder, not a file"),
    ),
    "a pipe for a manifest": Case(pipe("m.csv"), "data m.csv", 2, ("m.csv is not a file",)),
    "a pipe among captions": Case(
        together(images("d/a.png"), pipe("d/a.txt")), "data d --task generate", 2, ("d/a.txt is not a file",)
    ),
    "a pipe among masks": Case(
        together(PAIRS, lambda root: (root / "d/masks/0.png").unlink(), pipe("d/masks/0.png")),
        "data d", 0, ("d/masks/0.png: not a file",),
    ),
    # Eleven thousand processes, and files that would fill the memory.
    "a million workers": Case(folders(x=4, y=4), "train --data d --workers 1000000", 2, ("--workers 1000000",)),
    "less than no workers": Case(folders(x=4, y=4), "train --data d --workers -1", 2, ("--workers -1",)),
    "a decompression bomb": Case(
        together(folders(x=4, y=4), text("d/x/bomb.png", png_header(60_000, 60_000))),
        "data d", 0, ("d/x/bomb.png: too many pixels; shrink it below 100 megapixels",),
    ),
    "bombs alone": Case(
        together(*(text(f"d/{name}/bomb.png", png_header(60_000, 60_000)) for name in "xy")),
        "data d", 2, ("none of the 2 images can be read, the first: d/x/bomb.png: too many pixels",),
    ),
    "a large image": Case(
        together(folders(x=4, y=4), text("d/x/large.png", png_header(12_000, 9_000))),
        "data d", 0, ("d/x/large.png: 12000 x 9000 pixels; shrink it below 100 megapixels",),
    ),
    # A terminal obeyed the names.
    "escapes in a class's name": Case(folders(**{"\x1b[31mred": 4, "y": 4}), "data d", 0, ("\\x1b[31mred",), ("\x1b",)),
    "escapes in a file's name": Case(
        together(folders(x=4, y=4), text("d/x/\x1b]0;title\x07.png", "no image")),
        "data d", 0, ("\\x1b]0;title\\x07.png",), ("\x1b", "\x07"),
    ),
    "escapes in a path that is not there": Case(
        folders(), "data \x1b[2Jd", 2, ("\\x1b[2Jd does not exist",), ("\x1b",)
    ),
    "text that runs backwards": Case(folders(**{"\u202egnp": 4, "y": 4}), "data d", 0, ("\\u202egnp",), ("\u202e",)),
    # Captions in files of other endings were passed over.
    "captions in .caption files": Case(
        together(images("d/a.png", "d/b.png"), text("d/a.caption", "a cat"), text("d/b.caption", "a dog")),
        "data d --task generate", 0, ("captions in text files", "a cat"),
    ),
    "captions in .TXT files": Case(
        together(images("d/a.png", "d/b.png"), text("d/a.TXT", "a cat"), text("d/b.TXT", "a dog")),
        "data d", 0, ("captions in text files", "a cat"),
    ),
    "two captions for an image": Case(
        together(images("d/a.png"), text("d/a.txt", "a cat"), text("d/a.caption", "a dog")),
        "data d --task generate", 2, ("a.png has two captions, a.caption and a.txt",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_line_says_it(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    check(CASES[name], tmp_path, monkeypatch, capsys)
