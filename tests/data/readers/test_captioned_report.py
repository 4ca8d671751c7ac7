from __future__ import annotations

import json
from pathlib import Path

from snella.data.readers.captioned import read_captioned_data, read_captioned_test_data
from snella.data.readers.captioned_report import describe_captioned
from support.printed import rows, text


def test_captions_and_what_either_resize_costs(tmp_path: Path, picture) -> None:
    shapes = [(40, 20), (30, 30), (10, 40), (20, 25)]
    captions = ["a [red] cat", "two words", "one two three four", "two words"]
    lines = []
    for i, (size, caption) in enumerate(zip(shapes, captions, strict=True)):
        picture(tmp_path / "images" / f"{i}.png", size)
        lines.append(json.dumps({"file_name": f"images/{i}.png", "text": caption}))
    picture(tmp_path / "images" / "bad.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    lines.append('{"file_name": "images/bad.png", "text": "never seen"}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    report = text(describe_captioned(read_captioned_data(str(tmp_path), seed=0)))
    assert f"{tmp_path}: captions in metadata.jsonl\n" in report
    assert "images: train 2, val 1, test 1" in report
    assert "captions: 3 different, 2 to 4 words long" in report
    assert all(f"  {caption}\n" in report for caption in captions)
    assert "..." not in report
    assert "sizes: 10 x 40 to 30 x 30 pixels" in report
    assert "shapes: 1 landscape, 1 square, 2 portrait" in report
    cuts = [1 / 2, 0, 3 / 4, 1 / 5]  # of 40 x 20 a half falls to the centre square, ...
    assert (
        f"--resize crop cuts off {100 * sum(cuts) / 4:.1f} % of an image on average, at most 75.0 % (2.png)" in report
    )
    assert "--resize squash stretches by up to 4.00 (2.png)" in report
    assert "shortest side: 10 pixels (2.png); up to --image-size 10 no image is enlarged" in report
    assert "1 unreadable images left out:" in report
    assert "bad.png: empty file (0 bytes)" in report
    assert "taken out of the 4 training images" in report


def test_classes_are_counted(tmp_path: Path, class_folders) -> None:
    root = class_folders(tmp_path, cat=10, red_dog=20)
    report = text(describe_captioned(read_captioned_data(root, seed=0, prompt="a photo of a {class}")))
    assert "image folder, 2 classes" in report
    assert rows(report)["red_dog"] == ["14", "3", "3", "20"]
    assert "captions: 2 different, 5 to 6 words long" in report
    assert "  a photo of a red dog\n" in report
    assert "shapes: 30 landscape, 0 square, 0 portrait" in report


def test_square_images_without_captions_and_a_split_alone(tmp_path: Path, picture) -> None:
    for i in range(2):
        picture(tmp_path / f"{i}.png", (8, 8))
    data = read_captioned_data(str(tmp_path), seed=0)
    report = text(describe_captioned(data))
    assert "images: train 2, val 2, test 2" in report
    assert "captions: none" in report
    assert "shapes: 0 landscape, 2 square, 0 portrait" in report
    assert "--resize" not in report
    assert "the 2 training images stand for them" in report
    report = text(describe_captioned(read_captioned_test_data(str(tmp_path), classes=(), prompt="one", seed=0)))
    assert "images: test 2" in report
    assert "captions: 1 different, 1 word long" in report


def test_long_captions_are_shortened_and_of_many_three_shown(tmp_path: Path, picture) -> None:
    for i in range(5):
        picture(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"start{i} " + "word " * 100 + "end")
    report = text(describe_captioned(read_captioned_data(str(tmp_path), seed=0)))
    assert "captions: 5 different, 102 words long" in report
    assert report.count("start") == 3
    assert " end" not in report
