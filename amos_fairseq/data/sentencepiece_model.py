"""What a SentencePiece model file says, read without protobuf's library.

The fields are those of sentencepiece_model.proto, https://github.com/google/sentencepiece/tree/master/src
"""

import io
import struct
from dataclasses import dataclass
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """charsmap: its rules of normalisation in SentencePiece's own form; empty: none"""

    pieces: List[Piece]
    model_type: int
    byte_fallback: bool
    charsmap: bytes
    usual_whitespaces: bool  # U+2581 before each word, the first too, however many spaces there are

    @property
    def obstacle(self) -> Optional[str]:
        """What the tokenizers library cannot do of what this model does; None: nothing."""
        obstacles = {
            "is neither a BPE nor a unigram model": self.model_type not in (BPE, UNIGRAM),
            "treats spaces in its own way": not self.usual_whitespaces,
            "has user-defined or unused pieces": any(piece.kind in (USER_DEFINED, UNUSED) for piece in self.pieces),
        }
        return next((f"the SentencePiece model {name}" for name, there in obstacles.items() if there), None)


def parse(model: bytes) -> SentencePieceModel:
    """Fields that are absent have the defaults of the proto."""
    parts = list(fields(model))
    trainer, normalizer = (dict(fields(dict(parts).get(number, b""))) for number in (2, 3))
    pieces = []
    for piece in (dict(fields(value)) for number, value in parts if number == 1):
        (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
        pieces.append(Piece(piece[1].decode(), score, piece.get(3, NORMAL)))
    usual_whitespaces = all(normalizer.get(number, True) for number in (3, 4, 5)) and not trainer.get(24, False)
    return SentencePieceModel(
        pieces, trainer.get(3, UNIGRAM), bool(trainer.get(35, False)), normalizer.get(2, b""), usual_whitespaces
    )


def fields(message: bytes) -> Iterator[Tuple[int, Any]]:
    """(number, value) of each field of a protobuf message; a number that is no integer stays bytes."""
    stream = io.BytesIO(message)

    def varint() -> int:
        value = shift = 0
        while (byte := stream.read(1)[0]) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    while stream.tell() < len(message):
        key = varint()
        yield key >> 3, stream.read({1: 8, 5: 4}.get(key & 7) or varint()) if key & 7 else varint()

