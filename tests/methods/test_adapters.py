import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

from snella.config.method import METHODS, MethodConfig
from snella.errors import UserError
from snella.methods.adapters import (
    after_step,
    load_adapter,
    merged,
    save_adapter,
    wrap,
)
from snella.methods.layers import with_convolutions
from snella.tuner.targets import default_targets

SETTINGS = MethodConfig(r=4, target_sparsity=0.5)
PLAIN = ("bitfit", "linear", "full")


def vit() -> Any:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=3, class_token=True
    )


def convnext() -> Any:
    return timm.create_model("test_convnext", num_classes=3)  # Linear on (b, h, w, c)


def conv_mlp_convnext() -> Any:
    return timm.create_model("test_convnext", num_classes=3, conv_mlp=True)  # 1 x 1 Conv2d


def resnet() -> Any:
    return timm.create_model("test_resnet", num_classes=3, zero_init_last=False)  # else no block does anything


def resnext() -> Any:
    """A ResNet whose middle convolutions are grouped, and the only ones that are not 1 x 1."""
    return timm.models.ResNet(
        timm.models.resnet.Bottleneck,  # type: ignore[arg-type]  (timm's hint means the class)
        (1, 1, 1, 1),
        num_classes=3,
        cardinality=4,
        base_width=16,
        stem_width=16,
        channels=(16, 16, 16, 16),
        zero_init_last=False,
    )


MODELS = {"vit": vit, "convnext": convnext, "conv_mlp": conv_mlp_convnext, "resnet": resnet, "resnext": resnext}
REFUSED = {  # what PEFT cannot adapt, or breaks
    ("shira", "conv_mlp"),
    ("shira", "resnet"),
    ("shira", "resnext"),
    ("oft", "convnext"),
    ("oft", "resnet"),
}
CASES = [(method, model) for method in METHODS for model in MODELS if (method, model) not in REFUSED]


def build(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    part: Any
    for part in model.modules():
        if hasattr(part, "running_mean"):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
        if hasattr(part, "gamma") and isinstance(part.gamma, nn.Parameter):
            nn.init.ones_(part.gamma)  # ConvNeXt's layer scale starts at 1e-6 and hides the blocks
    return model.eval()


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0])


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(IMAGES)


def train(model: nn.Module, hook: Any = None, *, steps: int = 2, first: int = 1, lr: float = 1e-2) -> None:
    """A few SGD steps in evaluation mode: batch norms stay as they are."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for step in range(first, first + steps):
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        torch.optim.AdamW(parameters, lr=lr, weight_decay=0).step()  # without memory, so that a run can be cut
        if hook is not None:
            hook(step)
        for parameter in parameters:
            parameter.grad = None


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("method", "name"), CASES)
def test_only_what_is_meant_to_trains_and_it_does(method, name):
    base = build(name)
    names, biases = set(dict(base.named_parameters())), {n for n, _ in base.named_parameters() if n.endswith("bias")}
    head = {n for n in names if base.get_submodule(n.rpartition(".")[0]) is base.get_classifier()}
    model = wrap(base, replace(SETTINGS, name=method), total_step=20)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    start = logits(model)
    if method in PLAIN:
        assert trainable(model) == {"full": names, "linear": head, "bitfit": biases | head}[method]
    else:
        heads = {n for n in trainable(model) if ".modules_to_save.default." in n}
        assert len(heads) == len(head)
        prefix = {"dora": "lora_", "adalora": "lora_", "snell": "snella_"}.get(method, f"{method}_")
        assert all(f".{prefix}" in n for n in trainable(model) - heads)
        assert len(trainable(model)) > len(heads)
    train(model)
    assert not torch.allclose(logits(model), start)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= trainable(model)
    if method == "linear":
        assert changed == head


@pytest.mark.parametrize(("method", "name"), CASES)
def test_saved_loaded_and_merged_it_gives_the_same_logits(method, name, tmp_path):
    model = wrap(build(name), replace(SETTINGS, name=method), total_step=20)
    train(model, after_step(method, model))
    expected = logits(model)
    assert not torch.allclose(expected, logits(build(name)), atol=1e-3)
    save_adapter(method, model, tmp_path)
    loaded = load_adapter(method, build(name), tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6)
    for wrapped in (model, loaded):
        plain = merged(method, wrapped)
        torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)
        packages = {type(part).__module__.split(".")[0] for part in plain.modules()}
        assert not packages & {"peft", "snella"}
        assert not hasattr(plain, "peft_config")
        assert plain.state_dict().keys() == build(name).state_dict().keys()


@pytest.mark.parametrize(("method", "name"), [case for case in CASES if case[0] not in PLAIN])
def test_peft_methods_adapt_the_same_layers_as_snella(method, name):
    def adapted(wrapped: Any) -> set[str]:
        return set(wrapped.base_model.targeted_module_names)

    layers = adapted(wrap(build(name), replace(SETTINGS, name=method), total_step=20))
    assert layers == adapted(wrap(build(name), replace(SETTINGS, name="snella"), total_step=20))
    assert layers
    if name == "resnext":
        assert not any(layer.endswith("conv2") for layer in layers)  # grouped


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "shira", "oft"])
@pytest.mark.parametrize("name", ["vit", "conv_mlp"])
def test_an_untrained_update_changes_nothing(method, name):
    if (method, name) not in REFUSED:
        torch.testing.assert_close(
            logits(wrap(build(name), replace(SETTINGS, name=method), total_step=20)), logits(build(name))
        )


@pytest.mark.parametrize(("method", "name"), sorted(REFUSED))
def test_a_layer_that_a_method_cannot_adapt_is_named_with_the_methods_that_can(method, name):
    with pytest.raises(UserError) as error:
        wrap(build(name), replace(SETTINGS, name=method), total_step=20)
    message = str(error.value)
    layer = re.match(rf"{method} cannot adapt (\S+): ", message)
    assert layer is not None
    assert layer[1] in dict(build(name).named_modules())
    able = message.rpartition("methods that can: ")[2].split(", ")
    assert able == [other for other in METHODS if (other, name) not in REFUSED]


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_peft_still_has_the_faults_that_oft_is_refused_for(name):
    """When this fails, PEFT has mended OFT for such layers: take the refusal out."""
    import peft

    base = build(name)
    model = peft.get_peft_model(copy.deepcopy(base), peft.OFTConfig(target_modules=default_targets(base)))
    try:
        same = torch.allclose(logits(model), logits(base), atol=1e-3)
    except RuntimeError:
        same = False
    assert not same


@pytest.mark.parametrize("method", ["snella", "lora", "shira"])
def test_target_modules_mean_what_they_mean_in_peft(method):
    def layers(asked: Any) -> list[str]:
        names = (asked,) if isinstance(asked, str) else tuple(asked)
        settings = MethodConfig(name=method, r=4, target_modules=names)
        return sorted(wrap(build("vit"), settings, total_step=20).base_model.targeted_module_names)  # type: ignore[union-attr]

    assert layers(["mlp.fc1"]) == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]
    assert layers(r"blocks\.1\..*fc\d") == ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]
    assert len(layers("all-linear")) == 8
    assert "head" not in layers("all-linear")
    with pytest.raises(UserError, match=r"choose from: .*blocks\.\*\.mlp\.fc1"):
        layers(["nothing"])


def test_a_grouped_convolution_named_by_name_is_adapted_by_snella_alone():
    settings = MethodConfig(name="lora", r=4, target_modules=("layer1.0.conv2",))
    with pytest.raises(UserError, match=r"layer1\.0\.conv2.* in \d+ groups"):
        wrap(build("resnext"), settings, total_step=20)
    model = wrap(build("resnext"), replace(settings, name="snella"), total_step=20)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "snella" in name}
    assert trained
    assert all("layer1.0.conv2" in name for name in trained)


def test_shira_with_too_high_a_rank_names_one_that_works():
    with pytest.raises(UserError, match="use r=16 or less") as error:
        wrap(build("vit"), MethodConfig(name="shira", r=17))
    assert "blocks.0.attn.proj" in str(error.value)
    wrap(build("vit"), MethodConfig(name="shira", r=16))


def test_unknown_methods_and_models_without_a_head():
    with pytest.raises(UserError, match="did you mean lora"):
        wrap(build("vit"), replace(SETTINGS, name="lorra"), total_step=20)
    headless = timm.create_model("test_vit", num_classes=0)
    with pytest.raises(UserError, match="no classifier head"):
        wrap(headless, replace(SETTINGS, name="linear"), total_step=20)


def test_snell_is_equally_sparse_everywhere_and_allocates_nothing():
    model: Any = wrap(build("vit"), replace(SETTINGS, name="snell"), total_step=20)
    config = model.peft_config["default"]
    assert (config.kernel, config.init_sparsity, config.target_sparsity) == ("pwl", 0.5, 0.5)
    assert after_step("snell", model) is None
    dense: Any = wrap(build("vit"), MethodConfig(name="snell", r=4, target_sparsity=0.0))
    assert dense.peft_config["default"].gate == "none"


def test_batch_norm_statistics_are_saved_where_they_move(tmp_path):
    model = wrap(build("resnet"), replace(SETTINGS, name="full"), total_step=20)
    model.train()(IMAGES)
    save_adapter("full", model, tmp_path / "full")
    assert torch.equal(logits(load_adapter("full", build("resnet"), tmp_path / "full")), logits(model))

    model = wrap(build("resnet"), replace(SETTINGS, name="linear"), total_step=20)
    save_adapter("linear", model, tmp_path / "linear")
    with safe_open(tmp_path / "linear" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_adapter_that_is_not_there_or_of_another_model_is_refused(method, tmp_path):
    with pytest.raises(UserError, match=f"no adapter of {method} was saved there"):
        load_adapter(method, build("vit"), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")  # where PEFT would ask the hub for the rest
    with pytest.raises(UserError, match=f"no adapter of {method} was saved there"):
        load_adapter(method, build("vit"), tmp_path)
    save_adapter(method, wrap(build("vit"), replace(SETTINGS, name=method), total_step=20), tmp_path)
    for other in (build("resnet"), timm.create_model("test_vit", num_classes=3)):
        with pytest.raises(UserError, match="does not fit this"):
            load_adapter(method, other, tmp_path)


def test_transformers_models(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )

    def model() -> Any:
        torch.manual_seed(0)
        return transformers.ViTForImageClassification(config).eval()

    for method in METHODS:
        wrapped: Any = wrap(model(), replace(SETTINGS, name=method), total_step=20)
        loss = nn.functional.cross_entropy(wrapped(IMAGES).logits, LABELS % 2)
        loss.backward()
        torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1).step()
        with torch.no_grad():
            expected = wrapped.eval()(IMAGES).logits
            save_adapter(method, wrapped, tmp_path / method)
            loaded = load_adapter(method, model(), tmp_path / method).eval()
            torch.testing.assert_close(loaded(IMAGES).logits, expected, rtol=0, atol=1e-6)
            plain: Any = merged(method, wrapped)
            torch.testing.assert_close(plain(IMAGES).logits, expected, rtol=1e-5, atol=1e-5)
        plain.save_pretrained(tmp_path / f"{method}-plain")
        again = transformers.ViTForImageClassification.from_pretrained(tmp_path / f"{method}-plain").eval()
        torch.testing.assert_close(again(IMAGES).logits, expected, rtol=1e-5, atol=1e-5)


def test_summaries_are_one_line_each():
    assert all(row.summary and "\n" not in row.summary for row in METHODS.values())
    assert [name for name, row in METHODS.items() if row.build is None] == list(PLAIN)


def unet() -> Any:
    """A class-conditional UNet of diffusers; the layers that start at zero get numbers."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=3,
    )
    return model.eval()


def noise_of(model: Any, *, classes: torch.Tensor = LABELS) -> torch.Tensor:
    return model(IMAGES[:, :, :8, :8], torch.tensor([1, 400, 700, 999]), class_labels=classes).sample


def test_all_inner_convolutions_of_a_unet_are_adapted_besides():
    model = unet()
    inner = {name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)} - {"conv_in", "conv_out"}
    plain = {name for name, _ in model.named_modules() if re.fullmatch(default_targets(model), name)}
    found = {name for name, _ in model.named_modules() if re.fullmatch(with_convolutions(model), name)}
    assert found == plain | inner
    assert not plain & inner
    ends = {name.rpartition(".")[2] for name in inner}
    assert ends == {"conv1", "conv2", "conv_shortcut", "conv"}  # the last of down- and upsamplers


def test_the_patches_of_a_transformer_are_its_first_convolution():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=5
    )
    assert [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)] == ["pos_embed.proj"]
    assert not re.fullmatch(with_convolutions(model), "pos_embed.proj")
    assert re.fullmatch(with_convolutions(model), "transformer_blocks.0.attn1.to_q")


@pytest.mark.parametrize("method", ["snella", "lora", "full"])
def test_a_unet_with_its_convolutions_is_trained_saved_loaded_and_merged(method, tmp_path):
    base = unet()
    settings = MethodConfig(name=method, r=4, target_sparsity=0.5, target_modules=(with_convolutions(base),))
    wrapped: Any = wrap(base, settings, total_step=20)
    with torch.no_grad():
        start = noise_of(wrapped.eval())
    optimiser = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    hook = after_step(method, wrapped)
    for step in (1, 2):
        optimiser.zero_grad()
        noise_of(wrapped).square().mean().backward()
        optimiser.step()
        if hook is not None:
            hook(step)
    if method != "full":
        trained = {name for name, p in wrapped.named_parameters() if p.requires_grad and p.grad is not None}
        assert any("class_embedding.modules_to_save" in name for name in trained)
        for layer in ("down_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv", "mid_block.attentions.0.to_q"):
            assert any(f".{layer}." in name for name in trained)
    with torch.no_grad():
        expected = noise_of(wrapped.eval())
        assert not torch.allclose(expected, start, atol=1e-3)
        assert not torch.allclose(expected, noise_of(wrapped, classes=(LABELS + 1) % 3), atol=1e-4)
        save_adapter(method, wrapped, tmp_path)
        loaded = load_adapter(method, unet(), tmp_path).eval()
        torch.testing.assert_close(noise_of(loaded), expected, rtol=0, atol=1e-6)
        for one in (wrapped, loaded):
            plain: Any = merged(method, one)
            torch.testing.assert_close(noise_of(plain), expected, rtol=1e-4, atol=1e-5)
            assert plain.state_dict().keys() == unet().state_dict().keys()
            assert not {type(part).__module__.split(".")[0] for part in plain.modules()} & {"peft", "snella"}
