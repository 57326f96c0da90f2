"""The encodings without parameters, as modules."""

from torch import Tensor, nn

from raymarch.ops.harmonics import LAYOUTS, SIGNS, fourier, harmonics


class Harmonics(nn.Module):
    """Real spherical harmonics of unit directions [P, 3], degrees 0 to 3: [P, 16]."""

    outputs = 16

    def __init__(self, signs: str = "nerfstudio"):
        super().__init__()
        if signs not in SIGNS:
            raise ValueError(f"Harmonics: signs is {signs!r}, expected one of {', '.join(SIGNS)}")
        self.signs = signs

    def forward(self, d: Tensor) -> Tensor:
        return harmonics(d, self.signs)


class Fourier(nn.Module):
    """Sines and cosines of positions [P, 3] at octaves below `frequencies`: [P, 6 * frequencies]."""

    def __init__(self, frequencies: int, layout: str = "tcnn"):
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"Fourier: layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
        self.frequencies, self.layout = frequencies, layout
        self.outputs = 6 * frequencies

    def forward(self, x: Tensor) -> Tensor:
        return fourier(x, self.frequencies, self.layout)
