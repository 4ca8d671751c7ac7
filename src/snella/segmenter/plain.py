"""The simplest decoder, for plain ViTs: two convolutions on the last block's patch tokens.

images ─ ViT ─ (b, d, gh, gw) ─ 3 x 3 ─ batch norm ─ GELU ─ 1 x 1 ─ (b, 16 K, gh, gw) ─ (b, K, 4 gh, 4 gw)
"""

from __future__ import annotations

from timm.models import Beit, Eva, VisionTransformer
from torch import Tensor, nn

WIDTH = 256  # channels between the two convolutions
PARTS = 4  # a patch's side in the scores


class PlainHead(nn.Module):
    """Tokens (b, d, gh, gw) -> scores (b, K, 4 gh, 4 gw).

    A 3 x 3 convolution to 256 channels, batch norm, GELU, and a 1 x 1 convolution that says the classes of each of the
    4 x 4 parts of a patch: tokens know more than one class, which scores of their own size could not say.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(dim, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.act = nn.GELU()
        self.classify = nn.Conv2d(WIDTH, num_classes * PARTS**2, 1)
        self.shuffle = nn.PixelShuffle(PARTS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.shuffle(self.classify(self.act(self.norm(self.mix(tokens)))))


class PlainSegmentation(nn.Module):
    """Images (b, 3, h, w) -> scores (b, K, 4 gh, 4 gw), with gh x gw patches.

    Args:
        encoder: a timm VisionTransformer, Eva or Beit, whose head is taken off. One that norms after pooling norms its
            tokens instead.
        num_classes: K.
    """

    def __init__(self, encoder: VisionTransformer | Eva | Beit, num_classes: int) -> None:
        super().__init__()
        encoder.reset_classifier(0)
        if isinstance(encoder.norm, nn.Identity):
            encoder.norm, encoder.fc_norm = encoder.fc_norm, nn.Identity()
        self.encoder = encoder
        self.decoder = PlainHead(encoder.embed_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        assert isinstance(features, list)  # timm's other forms are for other arguments
        return self.decoder(features[0])
