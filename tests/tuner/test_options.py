"""Options that PEFT's users expect, and models of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snella import SnellaConfig
from snella.errors import UserError
from support.tuned import budgets, layer_named, layers, tuned, tuner_of
from support.vits import tiny_vit

TEXT: dict[str, Any] = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                            num_attention_heads=2, pad_token_id=0)  # fmt: skip


def with_options(**options: Any) -> peft.PeftModel:
    model = peft.get_peft_model(tiny_vit(), SnellaConfig(r=8, gate="hard", start_scale=5.0, **options))
    assert isinstance(model, peft.PeftModel)
    return model


def names(model: nn.Module) -> set[str]:
    return {layer.name for layer in layers(model)}


def test_ranks_by_pattern(images: Tensor, tmp_path: Path) -> None:
    model = with_options(rank_pattern={"fc1": 4, r"blocks\.0\.attn\.proj": 2})
    assert layer_named(model, "blocks.1.mlp.fc1").snella_A["default"].shape[-1] == 2  # by two heads
    assert layer_named(model, "blocks.0.attn.proj").snella_A["default"].shape[-1] == 1
    assert layer_named(model, "blocks.1.attn.proj").snella_A["default"].shape[-1] == 4
    model.eval().save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(tiny_vit(), str(tmp_path)).eval()
    assert torch.equal(loaded(images), model(images))


def test_sparsities_by_pattern(images: Tensor) -> None:
    model = with_options(target_sparsity=0.9, sparsity_pattern={"fc1": 0.4}, total_step=100, final_warmup=99)
    model(images).square().sum().backward()
    record = tuner_of(model).update_and_allocate(2)
    assert record is not None
    kept = budgets(model)
    sizes = {layer.name: layer.get_base_layer().weight.numel() for layer in layers(model)}
    own = [name for name in sizes if name.endswith("fc1")]
    others = [name for name in sizes if name not in own]
    for part, share in ((own, 0.6), (others, 0.1)):
        assert sum(sum(kept[name]) for name in part) == pytest.approx(share * sum(sizes[name] for name in part), abs=9)
    assert record["budget"] == pytest.approx(sum(map(sum, kept.values())), abs=9)
    found = tuner_of(model).kept_share()
    assert found is not None
    assert found.is_near


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"layers_to_transform": 1}, {"1"}),
        ({"layers_to_transform": [0]}, {"0"}),
        ({"layers_to_transform": [1], "layers_pattern": "blocks", "target_modules": ["fc1", "proj"]}, {"1"}),
    ],
)
def test_layers_by_number(options: dict[str, Any], found: set[str]) -> None:
    model = with_options(**options)
    assert {name.split(".")[1] for name in names(model)} == found
    assert len(names(model)) == (2 if "target_modules" in options else 4)


def test_numbers_of_no_layer_are_told() -> None:
    with pytest.raises(UserError, match="matches no layer"):
        with_options(layers_to_transform=[7])


@pytest.mark.parametrize(("bias", "count"), [("none", 0), ("snella_only", 8), ("all", 15)])
def test_biases_train_and_are_saved(bias: str, count: int, images: Tensor, tmp_path: Path) -> None:
    if bias != "none" and not hasattr(BaseTuner, "_get_learnable_bias_state_dict"):
        with pytest.raises(UserError, match=r"needs peft 0\.21 or newer"):
            with_options(bias=bias)
        return
    model = with_options(bias=bias, modules_to_save=[]).train()
    trained = {name: p for name, p in model.named_parameters() if name.endswith("bias") and p.requires_grad}
    assert len(trained) == count
    model(images).square().sum().backward()
    with torch.no_grad():
        for parameter in trained.values():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)
    model.eval().save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(tiny_vit(), str(tmp_path)).eval()
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank_pattern", {"fc1": 3}, r"rank_pattern\['fc1'\]=3 is not a positive multiple of heads=2"),
        ("sparsity_pattern", {"fc1": 3.0}, r"sparsity_pattern\['fc1'\]=3\.0 is outside \[0, 1\]"),
        ("bias", "lora_only", "bias='lora_only' is unknown; choose from none, all, snella_only"),
        ("layers_pattern", "blocks", "give layers_to_transform too"),
        ("target_parameters", ["experts.up"], r"target_parameters=\['experts.up'\]: an update is a part of a layer"),
    ],
)
def test_wrong_options_are_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SnellaConfig(**{field: value})


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_a_model_of_text_trains_generates_saves_and_merges(family: str, tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        config: Any = getattr(transformers, f"{family}Config")(**TEXT, num_key_value_heads=2, eos_token_id=None)
        return getattr(transformers, f"{family}ForCausalLM")(config)

    tokens = torch.randint(1, 40, (2, 6))
    model: Any = peft.get_peft_model(
        base(),
        SnellaConfig(r=4, gate="hard", start_scale=5.0, task_type="CAUSAL_LM", total_step=9, target_sparsity=0.5),
    )
    assert names(model) == {f"model.layers.{i}.self_attn.{part}_proj" for i in (0, 1) for part in "qv"}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(1, 9):
        losses.append(model(input_ids=tokens, labels=tokens).loss)
        losses[-1].backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(str(tmp_path))
    loaded: Any = peft.PeftModel.from_pretrained(base(), str(tmp_path)).eval()
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        assert torch.equal(loaded(input_ids=tokens).logits, expected)
        text = model.generate(input_ids=tokens, max_new_tokens=4, do_sample=False)
        plain = loaded.merge_and_unload()
        torch.testing.assert_close(plain(input_ids=tokens).logits, expected)
        assert torch.equal(plain.generate(input_ids=tokens, max_new_tokens=4, do_sample=False), text)


def test_heads_of_tasks_are_named_once(tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        kind: Any = transformers.BertConfig
        return transformers.BertForTokenClassification(kind(**TEXT, max_position_embeddings=16))

    model = peft.get_peft_model(base(), SnellaConfig(r=4, task_type="TOKEN_CLS"))
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(base(), str(tmp_path))
    for config in (model.peft_config["default"], loaded.peft_config["default"]):
        assert isinstance(config, SnellaConfig)
        assert config.modules_to_save == ["classifier", "score"]


def test_several_active_adapters_have_each_their_budget(images: Tensor) -> None:
    model = tuned(tiny_vit(), total_step=100, target_sparsity=0.9, modules_to_save=[])
    other = SnellaConfig(r=4, gate="hard", start_scale=5.0, total_step=100, target_sparsity=0.5, modules_to_save=[])
    model.add_adapter("other", other)
    tuner = tuner_of(model)
    tuner.set_adapter(["default", "other"])
    model(images).square().sum().backward()
    records = tuner.update_and_allocate(50)
    assert records is not None
    assert records.keys() == {"default", "other"}
    assert records["default"]["budget"] < records["other"]["budget"]
    state = tuner.allocator_state_dict()
    assert {name.partition("/")[0] for name in state} == {"default", "other"}
    tuner.load_allocator_state_dict(state)
    with pytest.raises(UserError, match=r"set_adapter\(\['default', 'other'\]\)"):
        tuner.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum")


def test_an_error_of_no_match_is_pefts_too() -> None:
    with pytest.raises(UserError) as caught:
        with_options(target_modules=["nothing"])
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, getattr(peft, "NoMatchingPeftModuleError", ValueError))


class Checkpointed(nn.Module):
    """A block that is made again in the backward pass by re-entry, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = True  # as transformers marks it
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=True))


def test_re_entrant_checkpointing_without_gradients_of_inputs_is_told() -> None:
    model = tuned(Checkpointed(), target_modules=["block"], modules_to_save=["head"]).train()
    with pytest.warns(UserWarning, match="None of the inputs"):
        model(torch.randn(3, 4)).sum().backward()
    with pytest.raises(UserError, match=r"before the gradients are cleared.* by re-entry.*enable_input_require_grads"):
        tuner_of(model).update_and_allocate(1)
