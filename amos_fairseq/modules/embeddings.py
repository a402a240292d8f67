"""From token embeddings to the first layer's input."""

from torch import Tensor, nn

from amos_fairseq.modules.initialization import LAYER_NORM_EPS


class InputEmbeddings(nn.Module):
    """Adds learned absolute positions 0..T-1, LayerNorm, dropout, and a projection if the table has another width."""

    def __init__(self, max_positions: int, embedding_dim: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.positions = nn.Embedding(max_positions, embedding_dim)
        self.layer_norm = nn.LayerNorm(embedding_dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(embedding_dim, dim) if embedding_dim != dim else nn.Identity()

    def forward(self, token_embeddings: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """token_embeddings: (B, T, E)   padding_mask: (B, T) bool, zero in the result   ->   (B, T, C)"""
        length, max_positions = token_embeddings.size(1), self.positions.num_embeddings
        if length > max_positions:
            raise ValueError(f"input of {length} tokens exceeds max_positions {max_positions}: truncate or raise it")
        hidden = self.layer_norm(token_embeddings + self.positions.weight[:length])
        hidden = self.projection(self.dropout(hidden))
        return hidden if padding_mask is None else hidden.masked_fill(padding_mask.unsqueeze(-1), 0.0)
