"""Causal layers: convolutions whose outputs depend on no later input, and the state with which a clip goes on from one call to the next.

In and out: [B, C, T]. Without a state x is a whole clip. With a state x is the part of a clip that follows the calls before, and the
outputs of all calls together are those of the whole clip. Encoders and decoders of both codecs are made of these layers.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true


class State:
    """The tensors that a network's causal layers keep from one call for the next, in the order in which the layers run.

    A clip begins with zeros, and with 0 frames.
    """

    def __init__(self, frames: Tensor, given: Iterable[Tensor]) -> None:
        """frames: int64 [1], how many frames of the clip came before this call; given: what the call before has kept."""
        self.frames, self.is_first = frames, frames == 0
        self.kept: list[Tensor] = []
        self._given = iter(given)

    def take(self) -> Tensor:
        """Return the next tensor of the call before."""
        return next(self._given)

    def keep(self, tensor: Tensor) -> None:
        """Keep a tensor for the next call."""
        self.kept.append(tensor)


class CausalLayer(nn.Module):
    """A layer that reads earlier inputs, or that holds such layers: `forward` takes a `State` after x."""

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> dimensions after the batch of each tensor that the layer itself takes and keeps, in order."""
        return {}


class CausalSequential(nn.Sequential, CausalLayer):
    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        for layer in self:
            x = layer(x, state) if isinstance(layer, CausalLayer) else layer(x)
        return x


class ELU(nn.Module):
    """max(x, exp(min(x, 0)) - 1), the exponential linear unit. ONNX Runtime computes it in a third of the time that its own `Elu` takes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, x.clamp(max=0).exp() - 1)


class CausalConv1d(CausalLayer):
    """[B, C, T] -> [B, C', T / stride], T a multiple of the stride."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        pad_mode: str,
        dilation: int = 1,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        """pad_mode: the padding before the first position. "constant": zeros; "replicate": copies of the first position; "reflect": the
        positions after the first one, mirrored, and zeros where the first call has too few of them.
        padding: positions before the first; None for as many as an output reads of the past."""
        super().__init__()
        self.padding = dilation * (kernel_size - 1) + 1 - stride if padding is None else padding
        self.pad_mode = pad_mode
        self.conv = nn.Conv1d(channels_in, channels_out, kernel_size, stride, dilation=dilation)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"tail": (self.conv.in_channels, self.padding)} if self.padding else {}

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        if self.padding:
            x = torch.cat((self._before(x, state), x), dim=2)
            if state is not None:
                state.keep(x[..., -self.padding :])
        return self.conv(x)

    def _before(self, x: Tensor, state: State | None) -> Tensor:
        """Return the positions before x: the end of the call before, or padding."""
        if state is None:
            tail, is_first = x.new_zeros(x.shape[0], x.shape[1], self.padding), torch.ones(1, dtype=torch.bool)
        else:
            tail, is_first = state.take(), state.is_first
        if self.pad_mode == "constant":
            return tail
        if self.pad_mode == "replicate":
            return torch.where(is_first, x[..., :1], tail)
        if not statically_known_true(x.shape[2] > self.padding):  # in a graph: at the sizes of every call
            x = F.pad(x, (0, self.padding))
        return torch.where(is_first, x.index_select(2, torch.arange(self.padding, 0, -1)), tail)


class CausalUpsample(CausalLayer):
    """A transposed convolution of kernel 2 * stride, whose outputs read the input that they lie in and the one before.

    [B, C, T] -> [B, C', T * stride]
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        # The padding cuts what lies before the given input and after the last one.
        self.conv = nn.ConvTranspose1d(channels_in, channels_out, 2 * stride, stride, padding=stride)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"last": (self.conv.in_channels, 1)}

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        before = x.new_zeros(x.shape[0], x.shape[1], 1) if state is None else state.take()
        x = torch.cat((before, x), dim=2)
        if state is not None:
            state.keep(x[..., -1:])
        return self.conv(x)


def state_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return name -> dimensions after the batch of every tensor of a network's state, in the order in which `State` has them."""
    layers = ((path, layer) for path, layer in network.named_modules() if isinstance(layer, CausalLayer))
    return {f"{path}.{name}": shape for path, layer in layers for name, shape in layer.state_shapes.items()}
