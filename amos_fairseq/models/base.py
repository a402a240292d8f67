"""What the models have in common."""

from fairseq.models import BaseFairseqModel


class Model(BaseFairseqModel):
    def train(self, mode: bool = True) -> "Model":
        """fairseq's trainer asks for the mode before every micro-batch: what is in it already is left alone."""
        return self if all(module.training is mode for module in self.modules()) else super().train(mode)
