"""MRLA-base that reads the newest five layers: the report is fair.md."""

from mrla_minimal.layer_attention import MRLABase


class NewestFive(MRLABase):
    """Eq. 6 over layers t - 4 to t."""

    def forward(self, x, memory=None):
        output, memory = super().forward(x, memory)
        return output, memory[-4:]
