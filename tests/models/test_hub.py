"""The hub is asked once, and an answer that does not come is an error within seconds."""

import socket
import time

import pytest

from snella.errors import UserError
from snella.models import hub
from support.backbones import VIT, build, spec


@pytest.mark.parametrize("name", [VIT, "vit_base_patch16_224_in21k", "hf-hub:timm/none.here", "hf:none/here"])
def test_without_a_network_a_download_fails_within_seconds(name, monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot be downloaded") as error:
        build(spec(name, pretrained=True))
    assert time.monotonic() - start < 10
    if name == VIT:
        assert "--checkpoint FILE" in str(error.value)
        assert "--no-pretrained" in str(error.value)


def test_weights_in_the_cache_need_no_hub(monkeypatch):
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file, **_: "/cache/" + file)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked the hub"))
    hub.require_hub("owner/name")
