"""A trained adapter in a user's own pipeline: in force while loaded, and gone without a trace."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import snella
from snella import SnellaConfig
from snella.errors import UserError
from snella.tuner import SnellaLayer
from support.tiny_pipelines import write_dit, write_sd, write_unet

CONFIGS: dict[str, Callable[[], peft.PeftConfig]] = {
    "snella": lambda: SnellaConfig(r=4, init_sparsity=0.5),
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v", "conv1"]),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["to_q", "to_v"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["to_q", "to_v"]),
    "biases": lambda: peft.LoraConfig(r=4, bias="lora_only", target_modules=["conv1"]),
    "pissa": lambda: peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=["to_q"]),
}


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unet(tmp_path_factory.mktemp("pipelines") / "unet", classes=3)


def load(folder: Path, **options: object) -> Any:
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generated(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = pipe("a cat", num_inference_steps=2, generator=generator, output_type="np").images
    return torch.from_numpy(images)


def predicted(unet: nn.Module) -> Tensor:
    """What a class-conditional network gives, whose pipeline passes no classes."""
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return unet(x, 10, class_labels=torch.tensor([0, 1, 2])).sample


def trained(network: nn.Module, config: peft.PeftConfig, folder: Path) -> peft.PeftModel:
    """The wrapped network with numbers for what would be trained, saved to the folder."""
    model = peft.get_peft_model(network, config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
                if "snella_A" in name or "snella_B" in name:
                    parameter *= 4  # the gate as published makes small ones vanish
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return model.eval()


def bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same_bits(network: nn.Module, before: dict[str, Tensor]) -> None:
    state = network.state_dict()
    assert list(state) == list(before)
    for name, tensor in state.items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("method", CONFIGS)
def test_generates_as_the_wrapped_network_and_comes_back_to_the_bit(sd: Path, tmp_path: Path, method: str) -> None:
    other = load(sd)
    trained(other.unet, CONFIGS[method](), tmp_path)
    expected = load(sd)
    peft.PeftModel.from_pretrained(expected.unet, tmp_path)  # its layers are in the pipeline's own network

    pipe = load(sd)
    before, modules, plain = bits(pipe.unet), dict(pipe.unet.named_modules()), generated(pipe)
    flags = [parameter.requires_grad for parameter in pipe.unet.parameters()]
    snella.load_into_pipeline(pipe, tmp_path)
    tuned = generated(pipe)
    torch.testing.assert_close(tuned, generated(expected), rtol=1e-4, atol=1e-5)
    assert (tuned - plain).abs().max() > 1e-3
    snella.unload_from_pipeline(pipe)
    assert_same_bits(pipe.unet, before)
    assert torch.equal(generated(pipe), plain)
    assert all(module is modules[name] for name, module in pipe.unet.named_modules())
    assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == flags
    assert not hasattr(pipe.unet, "peft_config")
    assert not any(module._forward_hooks for module in pipe.unet.modules())


@pytest.mark.parametrize("method", ["snella", "lora", "oft"])
def test_scale_multiplies_what_merging_changes(sd: Path, tmp_path: Path, method: str) -> None:
    pipe = load(sd)
    before, plain = bits(pipe.unet), generated(pipe)
    merged = bits(trained(load(sd).unet, CONFIGS[method](), tmp_path).merge_and_unload())  # type: ignore[operator]
    snella.load_into_pipeline(pipe, tmp_path, scale=0.0)
    assert torch.equal(generated(pipe), plain)
    snella.unload_from_pipeline(pipe)
    for scale in (0.5, -1.0, 1.0):
        snella.load_into_pipeline(pipe, tmp_path, scale=scale)
        for name, tensor in pipe.unet.state_dict().items():
            expected = before[name].double() + scale * (merged[name].double() - before[name].double())
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
        snella.unload_from_pipeline(pipe)
    assert_same_bits(pipe.unet, before)


def test_scale_is_that_of_the_tuned_layers(sd: Path, tmp_path: Path) -> None:
    other, pipe = load(sd), load(sd)
    for module in trained(other.unet, CONFIGS["snella"](), tmp_path).modules():
        if isinstance(module, SnellaLayer):
            module.set_scale("default", 0.5)
    snella.load_into_pipeline(pipe, tmp_path, scale=0.5)
    torch.testing.assert_close(generated(pipe), generated(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("names", ["all", "bias"])
def test_plain_files_of_full_and_bitfit(sd: Path, tmp_path: Path, names: str, scale: float) -> None:
    pipe = load(sd)
    before, plain = bits(pipe.unet), generated(pipe)
    state = {n: t + 0.1 * torch.randn_like(t) for n, t in before.items() if names == "all" or n.endswith("bias")}
    (tmp_path / "adapter").mkdir()
    save_file(state, tmp_path / "adapter" / "model.safetensors")
    snella.load_into_pipeline(pipe, tmp_path, scale=scale)
    for name, tensor in pipe.unet.state_dict().items():
        expected = torch.lerp(before[name], state[name], scale) if name in state else before[name]
        torch.testing.assert_close(tensor, expected)
    assert not torch.equal(generated(pipe), plain)
    snella.unload_from_pipeline(pipe)
    assert_same_bits(pipe.unet, before)
    assert torch.equal(generated(pipe), plain)


@pytest.mark.parametrize("saved", [["class_embedding"], ["class_embedding", "time_embedding"]])
@pytest.mark.parametrize("method", ["snella", "lora"])
def test_modules_trained_as_a_whole(classes: Path, tmp_path: Path, method: str, saved: list[str]) -> None:
    config = CONFIGS[method]()
    config.modules_to_save = saved  # type: ignore[attr-defined]
    model = trained(load(classes).unet, config, tmp_path)
    pipe = load(classes)
    before, modules, plain = bits(pipe.unet), dict(pipe.unet.named_modules()), predicted(pipe.unet)
    snella.load_into_pipeline(pipe, tmp_path)
    tuned = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.class_embedding.weight"]
    assert torch.equal(pipe.unet.class_embedding.weight, tuned)
    torch.testing.assert_close(predicted(pipe.unet), predicted(model), rtol=1e-4, atol=1e-5)
    snella.unload_from_pipeline(pipe)
    snella.load_into_pipeline(pipe, tmp_path, scale=0.5)
    halfway = torch.lerp(before["class_embedding.weight"], tuned, 0.5)
    torch.testing.assert_close(pipe.unet.class_embedding.weight, halfway)
    snella.unload_from_pipeline(pipe)
    assert_same_bits(pipe.unet, before)
    assert torch.equal(predicted(pipe.unet), plain)
    assert all(module is modules[name] for name, module in pipe.unet.named_modules())


def test_a_transformer_and_a_run_folder(tmp_path: Path) -> None:
    folder = write_dit(tmp_path / "dit")
    run = tmp_path / "run"
    trained(load(folder).transformer, CONFIGS["snella"](), run / "adapter")
    (run / "adapter" / "snella.json").write_text(json.dumps({"method": "snella"}))
    pipe = load(folder)
    before = bits(pipe.transformer)
    snella.load_into_pipeline(pipe, str(run))
    weight = "transformer_blocks.0.attn1.to_q.weight"
    assert not torch.equal(pipe.transformer.state_dict()[weight], before[weight])
    snella.unload_from_pipeline(pipe)
    assert_same_bits(pipe.transformer, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_rounded_once(sd: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    trained(load(sd).unet, CONFIGS["snella"](), tmp_path)
    pipe, exact = load(sd).to(dtype), load(sd).to(dtype).to(torch.float32)  # the same rounded weights
    before = bits(pipe.unet)
    for scale in (1.0, 0.5):
        snella.load_into_pipeline(pipe, tmp_path, scale)
        snella.load_into_pipeline(exact, tmp_path, scale)
        assert {tensor.dtype for tensor in pipe.unet.state_dict().values()} == {dtype}
        for name, tensor in exact.unet.state_dict().items():
            assert torch.equal(pipe.unet.state_dict()[name], tensor.to(dtype)), name
        snella.unload_from_pipeline(pipe)
        snella.unload_from_pipeline(exact)
        assert_same_bits(pipe.unet, before)


def test_on_cuda(sd: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = trained(load(sd).unet, CONFIGS["snella"](), tmp_path)
    pipe = load(sd).to("cuda", torch.float16)
    before = bits(pipe.unet)
    snella.load_into_pipeline(pipe, tmp_path)
    merged = model.merge_and_unload().state_dict()  # type: ignore[operator]
    for name, tensor in pipe.unet.state_dict().items():
        assert tensor.is_cuda
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor.cpu().float(), merged[name], rtol=2e-3, atol=2e-3)
    snella.unload_from_pipeline(pipe)
    assert_same_bits(pipe.unet, before)


def test_a_loaded_pipeline_is_saved_as_a_plain_one(sd: Path, tmp_path: Path) -> None:
    trained(load(sd).unet, CONFIGS["lora"](), tmp_path / "adapter")
    pipe = load(sd)
    snella.load_into_pipeline(pipe, tmp_path)
    pipe.save_pretrained(tmp_path / "merged")
    assert torch.equal(generated(load(tmp_path / "merged")), generated(pipe))


def test_mode_is_kept(sd: Path, tmp_path: Path) -> None:
    trained(load(sd).unet, CONFIGS["lora"](), tmp_path)
    pipe = load(sd)
    pipe.unet.train()
    pipe.unet.mid_block.eval()
    snella.load_into_pipeline(pipe, tmp_path)
    assert pipe.unet.training
    assert not pipe.unet.mid_block.training


# ---- errors


def assert_refused(pipe: Any, path: Path, *words: str) -> None:
    """One line with the words, and an untouched network."""
    before, modules = bits(pipe.unet), dict(pipe.unet.named_modules())
    with pytest.raises(UserError) as caught:
        snella.load_into_pipeline(pipe, path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert_same_bits(pipe.unet, before)
    assert all(module is modules[name] for name, module in pipe.unet.named_modules())
    with pytest.raises(UserError, match="no adapter is loaded"):
        snella.unload_from_pipeline(pipe)


def test_one_adapter_at_a_time(sd: Path, tmp_path: Path) -> None:
    trained(load(sd).unet, CONFIGS["lora"](), tmp_path)
    pipe = load(sd)
    snella.load_into_pipeline(pipe, tmp_path)
    with pytest.raises(UserError, match="unload it first"):
        snella.load_into_pipeline(pipe, tmp_path)
    snella.unload_from_pipeline(pipe)
    snella.load_into_pipeline(pipe, tmp_path)
    snella.unload_from_pipeline(pipe)
    with pytest.raises(UserError, match="no adapter is loaded into this StableDiffusionPipeline"):
        snella.unload_from_pipeline(pipe)


def test_no_adapter_there(sd: Path, tmp_path: Path) -> None:
    pipe = load(sd)
    assert_refused(pipe, tmp_path / "nowhere", "nowhere does not exist")
    assert_refused(pipe, tmp_path, "holds no adapter")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert_refused(pipe, tmp_path, "holds no adapter")  # without weights
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    assert_refused(pipe, tmp_path, "is damaged")
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    assert_refused(pipe, tmp_path, "is damaged")


def test_an_adapter_of_another_network(sd: Path, classes: Path, tmp_path: Path) -> None:
    trained(load(classes).unet, CONFIGS["lora"](), tmp_path)
    assert_refused(load(sd), tmp_path, "does not fit this UNet2DConditionModel", "down_blocks.1.attentions.0.to_q")


@pytest.mark.parametrize("method", ["snella", "lora"])
def test_an_adapter_of_a_wider_network(sd: Path, tmp_path: Path, method: str) -> None:
    from diffusers import UNet2DConditionModel

    config = dict(load(sd).unet.config) | {"block_out_channels": (8, 32)}
    wider = UNet2DConditionModel.from_config(config)
    assert isinstance(wider, UNet2DConditionModel)
    trained(wider, CONFIGS[method](), tmp_path)
    assert_refused(load(sd), tmp_path, "does not fit this UNet2DConditionModel", "down_blocks.1.")


def test_an_adapter_that_lacks_a_layer(sd: Path, tmp_path: Path) -> None:
    trained(load(sd).unet, CONFIGS["lora"](), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if "mid_block" not in name}
    save_file(state, file)
    assert_refused(load(sd), tmp_path, "mid_block.", "differs or is missing")


@pytest.mark.parametrize("change", ["name", "shape"])
def test_a_plain_file_of_another_network(sd: Path, tmp_path: Path, change: str) -> None:
    pipe = load(sd)
    state = {"conv_in.bias": torch.zeros(8 if change == "name" else 9)}
    save_file(state | ({"conv_of.bias": torch.zeros(3)} if change == "name" else {}), tmp_path / "model.safetensors")
    word = "conv_of.bias" if change == "name" else "conv_in.bias"
    assert_refused(pipe, tmp_path, "does not fit this UNet2DConditionModel", word)


def test_a_pipeline_without_a_network(tmp_path: Path) -> None:
    class Odd:
        pass

    for call in (lambda: snella.load_into_pipeline(Odd(), tmp_path), lambda: snella.unload_from_pipeline(Odd())):
        with pytest.raises(UserError, match="Odd has neither a unet nor a transformer"):
            call()


def test_weights_that_cannot_be_changed(sd: Path, tmp_path: Path) -> None:
    trained(load(sd).unet, CONFIGS["lora"](), tmp_path)
    pipe = load(sd)
    with pytest.raises(UserError, match="scale=nan"):
        snella.load_into_pipeline(pipe, tmp_path, scale=float("nan"))
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    kept = layer.weight
    layer.weight = nn.Parameter(kept.detach().to(torch.int8), requires_grad=False)
    assert_refused(pipe, tmp_path, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight", "quantised")
    layer.weight = kept
    offloaded = copy.deepcopy(pipe)
    offloaded.unet.to("meta")
    with pytest.raises(UserError, match="is offloaded"):
        snella.load_into_pipeline(offloaded, tmp_path)


def test_a_failure_on_the_way_leaves_nothing_behind(sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(load(sd).unet, CONFIGS["lora"](), tmp_path)
    merge, calls = peft.tuners.lora.Linear.merge, []

    def failing(layer: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(layer)
        merge(layer, *args, **kwargs)
        if len(calls) == 3:
            raise NotImplementedError("this layer cannot be merged")

    monkeypatch.setattr(peft.tuners.lora.Linear, "merge", failing)
    assert_refused(load(sd).to(torch.float16), tmp_path, "this layer cannot be merged")
    assert len(calls) == 3


def test_importing_snella_does_not_import_diffusers(python: str) -> None:
    code = "import sys, snella; snella.load_into_pipeline; assert 'diffusers' not in sys.modules"
    subprocess.run([python, "-c", code], check=True)
