"""Names of matrices in real models become a block and a kind each."""

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snella.report.matrices import places


def linears(model):
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "head" not in name and "classifier" not in name:
            yield from [f"{name}[{i}]" for i in range(3)] if name.endswith("qkv") else [name]


@pytest.mark.parametrize(
    ("name", "blocks", "kinds"),
    [
        ("test_vit", [str(i) for i in range(6)], ["q", "k", "v", "proj", "fc1", "fc2"]),
        ("test_convnext", ["0.0", "1.0", "1.1", "2.0", "2.1", "2.2", "2.3", "3.0", "3.1"], ["fc1", "fc2"]),
    ],
)
def test_timm_models(name, blocks, kinds):
    found = places(list(linears(timm.create_model(name))))
    assert list(dict.fromkeys(block for block, _ in found.values())) == blocks
    assert list(dict.fromkeys(kind for _, kind in found.values())) == kinds


def test_swin_blocks_have_two_indices_and_merging_stands_beside_them():
    found = places(["layers.0.blocks.1.mlp.fc1", "layers.1.downsample.reduction", "layers.1.blocks.0.mlp.fc1"])
    assert list(found.values()) == [("0.1", "fc1"), ("1", "reduction"), ("1.0", "fc1")]


def test_kinds_that_end_alike_keep_their_whole_name():
    block = "vit.encoder.layer.3"
    found = places([f"{block}.attention.attention.query", f"{block}.attention.output.dense", f"{block}.output.dense"])
    assert list(found.values()) == [("3", "q"), ("3", "attention.output.dense"), ("3", "output.dense")]


def test_blocks_that_indices_do_not_tell_apart_keep_a_word():
    found = places(["unet.down_blocks.0.attn.to_q", "unet.up_blocks.0.attn.to_q"])
    assert list(found.values()) == [("down_blocks 0", "q"), ("up_blocks 0", "q")]


def test_an_index_at_the_end_belongs_to_the_kind():
    found = places(["layer1.0.downsample.0", "layer1.0.conv1", "layer2.0.conv1"])
    assert list(found.values()) == [("1.0", "downsample.0"), ("1.0", "conv1"), ("2.0", "conv1")]


def test_a_name_without_index_is_its_own_block():
    assert places(["patch_embed.proj", "blocks.0.fc"]) == {
        "patch_embed.proj": ("patch_embed.proj", ""),
        "blocks.0.fc": ("0", "fc"),
    }


words = st.sampled_from(["a", "b", "layer1", "layer2", "query", "to_q", "qkv[0]", "dense", "0", "1", "12"])


@given(st.sets(st.lists(words, min_size=1, max_size=5).map(".".join), min_size=1, max_size=20))
def test_no_two_matrices_share_a_place(names):
    found = places(sorted(names))
    assert set(found) == names
    assert len(set(found.values())) == len(names)
