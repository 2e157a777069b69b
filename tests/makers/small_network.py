"""A network that stands in for Swin UNETR where a test is not about the network."""

from torch import Tensor, nn
from torch.nn.functional import relu


class SmallUNETR(nn.Module):
    """Named as Swin UNETR's parts are, one layer each: 8 tensors, of which 2 are the head's.

    Args:
        feature_size: Of the settings; not used.
        out_channels: Number of channels that it gives.
    """

    def __init__(self, feature_size: int, out_channels: int) -> None:
        super().__init__()
        self.swinViT = nn.Conv3d(1, 4, 3, padding=1)
        self.encoder1 = nn.Conv3d(4, 4, 1)
        self.decoder1 = nn.Conv3d(4, 4, 3, padding=1)
        self.out = nn.Conv3d(4, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.swinViT, self.encoder1, self.decoder1):
            x = relu(layer(x))
        return self.out(x)
