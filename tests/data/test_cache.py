from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from snella.data.cache import TensorCache, content_key, image_key
from snella.errors import UserError
from snella.files import cache_folder

TENSORS = {
    "latents": torch.arange(24.0).reshape(2, 3, 4).bfloat16(),
    "scale": torch.tensor(3.5),
    "mask": torch.tensor([True, False]),
    "none": torch.zeros(0, 7),
    "size": torch.tensor([1, -2]),
}
KEY = content_key("a")


def same(found: dict[str, torch.Tensor] | None, expected: dict[str, torch.Tensor]) -> bool:
    return (
        found is not None
        and found.keys() == expected.keys()
        and all(found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in expected.items())
    )


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path / "cache")
    assert KEY not in cache
    assert cache.get(KEY) is None
    cache.put(KEY, TENSORS)
    assert KEY in cache
    assert same(TensorCache(tmp_path / "cache").get(KEY), TENSORS)
    assert content_key("b") not in cache
    cache.put(KEY, {"other": torch.ones(1)})
    assert same(cache.get(KEY), {"other": torch.ones(1)})


def test_one_plain_safetensors_file_a_key_and_nothing_beside(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.put(KEY, TENSORS)
    cache.put(KEY, TENSORS)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / KEY[:2] / f"{KEY}.safetensors"]
    assert same(load_file(tmp_path / KEY[:2] / f"{KEY}.safetensors"), TENSORS)


def test_views_and_tensors_that_share_memory_and_gradients(tmp_path: Path) -> None:
    whole = torch.arange(12.0, requires_grad=True)
    views = {"row": whole[:6], "turned": whole.reshape(3, 4).T, "again": whole}
    TensorCache(tmp_path).put(KEY, views)
    assert same(TensorCache(tmp_path).get(KEY), {name: view.detach() for name, view in views.items()})


def test_a_damaged_file_counts_as_absent_wherever_it_is_damaged(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.put(KEY, TENSORS)
    path = tmp_path / KEY[:2] / f"{KEY}.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert KEY not in cache
    path.write_bytes(b"\0" * len(whole))
    assert cache.get(KEY) is None
    for at in range(int.from_bytes(whole[:8], "little") + 8, len(whole)):  # the values
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert cache.get(KEY) is None
    retyped = whole.replace(b'"I64"', b'"F64"')
    assert retyped != whole
    path.write_bytes(retyped)
    assert cache.get(KEY) is None
    cache.put(KEY, TENSORS)
    assert KEY in cache


def test_a_file_of_tensors_without_a_checksum_is_not_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / KEY[:2]).mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / KEY[:2] / f"{KEY}.safetensors")
    assert TensorCache(tmp_path).get(KEY) is None


def _put_often(folder: Path) -> None:
    for _ in range(30):
        TensorCache(folder).put(KEY, TENSORS)


def test_two_processes_may_write_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_put_often, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert same(TensorCache(tmp_path).get(KEY), TENSORS)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as caught:
        TensorCache(tmp_path / "file").put(KEY, TENSORS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "ab", "../etc", "a/b/c", "a.b.c", "abc\n"])
def test_a_key_that_is_not_a_file_name_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="content_key"):
        TensorCache(tmp_path).get(key)


def test_the_folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SNELLA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "snella"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/snella")
    monkeypatch.setenv("SNELLA_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


PARTS = st.lists(st.one_of(st.text(), st.binary(), st.dictionaries(st.text(), st.integers() | st.text())), max_size=3)


@given(PARTS, PARTS)
def test_keys_are_equal_only_where_the_parts_are(first: list, second: list) -> None:
    assert (content_key(*first) == content_key(*second)) == (first == second)
    assert len(content_key(*first)) == 64


def test_keys_tell_order_type_and_border_but_not_the_order_in_a_mapping() -> None:
    assert content_key({"a": 1, "b": {"c": 2, "d": 3}}) == content_key({"b": {"d": 3, "c": 2}, "a": 1})
    parts = [("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",), (b"abc",), ('["abc"]',), ("ab", "c", ""), ()]
    assert len({content_key(*part) for part in parts}) == len(parts)
    assert content_key(b"x") != content_key(hashlib.sha256(b"x").hexdigest())
    assert content_key("\ud800") != content_key("?")  # half a character, as JSON may hold it


def test_image_keys_follow_size_and_pixels(tmp_path: Path) -> None:
    pixels = bytes(range(36))
    image = Image.frombytes("RGB", (4, 3), pixels)
    image.save(tmp_path / "moved.png")
    changed = bytes([*pixels[:-1], 0])
    others = [
        Image.frombytes("RGB", (3, 4), pixels),
        Image.frombytes("RGB", (4, 3), changed),
        Image.frombytes("L", (12, 3), pixels),
    ]
    assert image_key(Image.open(tmp_path / "moved.png")) == image_key(image) == image_key(image.copy())
    assert len({image_key(image), *map(image_key, others)}) == 4
    palettes = [Image.frombytes("P", (2, 1), b"\0\1") for _ in range(2)]
    for value, indexed in enumerate(palettes):
        indexed.putpalette([0, 0, 0, value, 9, 9])
    assert image_key(palettes[0]) != image_key(palettes[1])
