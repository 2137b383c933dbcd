"""MRLA-base that reads the newest layers only: the report is good.md."""

from mrla_minimal.layer_attention import MRLABase


class WindowedBase(MRLABase):
    """Eq. 6 over the last `window` layers, the asking one among them: what is older is let go."""

    def __init__(self, channels, head_dim=None, window=3):
        super().__init__(channels, head_dim)
        self.window = window

    def forward(self, x, memory=None):
        output, memory = super().forward(x, memory)             # at most `window` keys and values
        return output, memory[max(0, len(memory) - self.window + 1) :]
