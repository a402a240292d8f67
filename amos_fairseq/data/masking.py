"""Masking: which positions of a block are selected for prediction, and what stands there instead; cropping."""

from dataclasses import dataclass, fields
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import torch
from fairseq.data import FairseqDataset

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.options import Range, check, option

FROM_0_TO_1 = Range(0, 1, with_high=True)
CROPS = 1  # their stream of random numbers beside (seed, epoch, index), from which masks are drawn


@dataclass
class MaskingOptions:
    """Which positions are selected for prediction, and what stands there instead."""

    mask_prob: float = option(
        0.15, "share of the maskable positions that are selected for prediction", Range(0, 1, without_low=True)
    )
    mask_token_prob: float = option(1.0, "share of the selected positions that become <mask>", FROM_0_TO_1)
    keep_prob: float = option(0.0, "share of the selected positions that keep their token", FROM_0_TO_1)
    random_prob: float = option(0.0, "share of the selected positions that get a random token", FROM_0_TO_1)
    mask_special_tokens: bool = option(False, "let <s> and </s> be selected as well (COCO-LM, App.)")

    def __post_init__(self) -> None:
        check(self)
        shares = (self.mask_token_prob, self.keep_prob, self.random_prob)
        if abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"mask_token_prob, keep_prob and random_prob must be shares that add up to 1, got {shares}: "
                "for example 1 0 0, or 0.8 0.1 0.1 as in BERT"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "MaskingOptions":
        """As a task's options have it; one that is absent has its default."""
        options = options if isinstance(options, Mapping) else vars(options)
        names = {field.name for field in fields(cls)} & set(options)
        return cls(**{name: options[name] for name in names})


class MaskedBlock(NamedTuple):
    original_tokens: np.ndarray  # (T,)
    masked_tokens: np.ndarray  # (T,)
    masked_positions: np.ndarray  # (T,) bool


def mask_block(
    original_tokens: np.ndarray, options: MaskingOptions, generator: np.random.Generator, mask_token: int,
    special_tokens: Sequence[int], regular_tokens: np.ndarray,
) -> MaskedBlock:
    """Select round(mask_prob * maskable) positions without replacement and put something else there.

    `special_tokens` are never selected unless `mask_special_tokens`; random tokens come from `regular_tokens`.
    """
    maskable: np.ndarray = np.arange(len(original_tokens))
    if not options.mask_special_tokens:
        maskable = maskable[~np.isin(original_tokens, special_tokens)]
    selected = generator.choice(maskable, size=round(options.mask_prob * len(maskable)), replace=False)
    masked_positions = np.zeros(len(original_tokens), dtype=bool)
    masked_positions[selected] = True

    fate = generator.random(len(selected))
    turns_mask = fate < options.mask_token_prob
    turns_random = fate >= 1 - options.random_prob
    masked_tokens = original_tokens.copy()
    masked_tokens[selected[turns_mask]] = mask_token
    masked_tokens[selected[turns_random]] = generator.choice(regular_tokens, size=turns_random.sum())
    return MaskedBlock(original_tokens, masked_tokens, masked_positions)


def crop_block(original_tokens: np.ndarray, keep_fraction: float, seed: int, epoch: int, index: int) -> np.ndarray:
    """COCO-LM's second view of a block: `<s>` and a contiguous part of the rest.

    Together they are round(keep_fraction * T) tokens but 1 at least. All starts are equally likely. A function of
    (seed, epoch, index), independent of the masks drawn for them.

    original_tokens: (T,), the first of which is `<s>`
    """
    kept = max(1, round(keep_fraction * len(original_tokens))) - 1  # beside <s>
    generator = np.random.default_rng([seed, epoch, index, CROPS])
    start = generator.integers(1, len(original_tokens) - kept, endpoint=True)
    return np.concatenate([original_tokens[:1], original_tokens[start : start + kept]])


class MaskedBlockDataset(FairseqDataset):
    """Blocks of a prepared corpus with masks drawn anew in every epoch, a function of (seed, epoch, index).

    `blocks[index]` is the token tensor of one block. Masking happens when an item is read, so a resumed run sees what
    an uninterrupted one sees; the loader's workers must be started anew for an epoch (see the task), or they keep
    the epoch that they were started with. With `cropping`, batches hold a cropped view as well, of that share.
    """

    def __init__(
        self, blocks, sizes: np.ndarray, tokenizer: Tokenizer, options: MaskingOptions, seed: int,
        cropping: Optional[float] = None,
    ):
        super().__init__()
        self.blocks = blocks
        self.sizes = np.asarray(sizes)
        self.options = options
        self.cropping = cropping
        self.seed = seed
        self.epoch = 1
        self.padding, self.mask_token = tokenizer.pad, tokenizer.mask
        self.special_tokens, self.excluded_tokens = tokenizer.special, tokenizer.excluded
        self.regular_tokens = np.setdiff1d(np.arange(len(tokenizer)), self.excluded_tokens)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Dict[str, Any]:
        generator = np.random.default_rng([self.seed, self.epoch, index])
        tokens = self.blocks[index].numpy()
        block = mask_block(tokens, self.options, generator, self.mask_token, self.special_tokens, self.regular_tokens)
        item = {"id": int(index), "block": block}
        if self.cropping is not None:
            item["cropped_tokens"] = crop_block(tokens, self.cropping, self.seed, self.epoch, index)
        return item

    def __len__(self) -> int:
        return len(self.blocks)

    def collater(self, samples: List[Dict[str, Any]]) -> Dict[str, Any]:
        """Stack blocks as (B, T).

        Counts and flat indices of the selected positions are made here, where they cost no wait for the device.
        """
        if not samples:
            return {}
        blocks = [sample["block"] for sample in samples]
        lengths = [len(block.original_tokens) for block in blocks]
        words = [int((~np.isin(block.original_tokens, self.excluded_tokens)).sum()) for block in blocks]
        masked_positions = stack([block.masked_positions for block in blocks], False)
        net_input = {
            "original_tokens": stack([block.original_tokens for block in blocks], self.padding).long(),
            "masked_tokens": stack([block.masked_tokens for block in blocks], self.padding).long(),
            "masked_positions": masked_positions, "masked_index": masked_positions.flatten().nonzero().squeeze(-1),
            "num_masked": [int(block.masked_positions.sum()) for block in blocks],
            "sample_ids": torch.tensor([sample["id"] for sample in samples]),
            "padding_mask": padding_mask(lengths),
        }
        if self.cropping is not None:
            crops = [sample["cropped_tokens"] for sample in samples]
            net_input["cropped_tokens"] = stack(crops, self.padding).long()
            net_input["cropped_padding_mask"] = padding_mask([len(crop) for crop in crops])
        return counted(net_input, lengths, words)

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    num_tokens = size

    def ordered_indices(self) -> np.ndarray:
        """A random order: blocks are of one length but for the last."""
        return np.random.permutation(len(self))


def rows_of(sample: Dict[str, Any], rows: slice) -> Dict[str, Any]:
    """Some of a collated batch's sequences, as wide as it is."""
    inputs, lengths, words = sample["net_input"], sample["lengths"][rows], sample["words"][rows]
    first, last = (sum(inputs["num_masked"][:row]) for row in (rows.start, rows.stop))
    net_input = {k: v[rows] if isinstance(v, (torch.Tensor, list)) else v for k, v in inputs.items()}
    net_input["masked_index"] = inputs["masked_index"][first:last] - rows.start * inputs["original_tokens"].size(1)
    return counted(net_input, lengths, words)


def counted(net_input: Dict[str, Any], lengths: List[int], words: List[int]) -> Dict[str, Any]:
    """A batch as fairseq has it, with what losses are divided by."""
    selected, sequences = sum(net_input["num_masked"]), len(lengths)
    counts = {"selected": selected, "valid": sum(lengths), "words": sum(words), "sequences": sequences}
    sizes = {"nsentences": sequences, "ntokens": sum(lengths)}
    return {"net_input": net_input, "counts": counts, "lengths": lengths, "words": words, **sizes}


def padded_width(longest: int) -> int:
    """Of a batch whose longest sequence has so many tokens: a multiple of 8, as matrix units like it."""
    return -(-longest // 8) * 8


def stack(rows: Sequence[np.ndarray], fill) -> torch.Tensor:
    """(B, T) from rows of T or fewer, right-padded with `fill`; T: `padded_width`."""
    stacked = np.full((len(rows), padded_width(max(map(len, rows)))), fill, dtype=rows[0].dtype)
    for padded, row in zip(stacked, rows):
        padded[: len(row)] = row
    return torch.from_numpy(stacked)


def padding_mask(lengths: Sequence[int]) -> Optional[torch.Tensor]:
    """(B, T) bool, True at what `stack` adds to rows of these lengths; None if that is nothing."""
    mask = stack([np.zeros(length, dtype=bool) for length in lengths], True)
    return mask if mask.any() else None
