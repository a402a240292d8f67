"""The row functions once more, in float64 NumPy and written from their definitions alone."""

import numpy as np

WORD = np.uint64(0xFFFFFFFF)


def philox(key, a, b, c, d):
    a, b, c, d = np.broadcast_arrays(*(np.asarray(x, np.uint64) for x in (a, b, c, d)))
    low, high = key % 2**32, key // 2**32
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (second >> np.uint64(32)) ^ b ^ np.uint64(low), second & WORD
        c, d = (first >> np.uint64(32)) ^ d ^ np.uint64(high), first & WORD
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return np.stack([a, b, c, d], axis=-1)


def gumbel(words):
    return -np.log(-np.log1p(-(np.asarray(words, np.float64) + 0.5) * 2.0**-32))


def gumbel_noise(noise, vocabulary):
    sample, position = noise.rows.numpy().astype(np.uint64).T[:, :, None]
    blocks = np.arange(-(-vocabulary // 4))[None]
    words = philox(noise.seed, blocks, position, sample & WORD, sample >> np.uint64(32))
    return gumbel(words.reshape(len(sample), -1)[:, :vocabulary])


def read_rows(logits, bias, targets, weights, excluded, noise, temperature):
    """losses, predicted, ranks, sampled, likeliest, lists of candidates, tails, d losses / d logits"""
    z = logits.double().numpy() + bias.double().numpy()
    rows, heads, vocabulary = z.shape
    weights = np.ones((rows, heads)) if weights is None else weights.double().numpy()
    row, target = np.arange(rows), targets.numpy()
    of_target = z[row, :, target]
    largest = z.max(-1)
    p = np.exp(z - largest[..., None])
    losses = largest - of_target + np.log(p.sum(-1))
    gradient = p / p.sum(-1, keepdims=True)
    gradient[row, :, target] -= 1
    mixed = np.zeros((rows, vocabulary))
    for g in range(heads):
        used = weights[:, g] != 0
        mixed[used] += weights[used, g, None] * z[used, g]
    allowed = mixed.copy() if excluded is None else np.where(excluded.numpy(), -np.inf, mixed)
    perturbed = allowed + gumbel_noise(noise, vocabulary)
    sampled = perturbed.argmax(-1)
    phi = (perturbed - perturbed.max(-1, keepdims=True)) / temperature
    listed = phi > -np.log(1e6)
    tails = 1 - (np.exp(phi) * listed).sum(-1) / np.exp(phi).sum(-1)
    candidates = [np.flatnonzero(x) for x in listed]
    ranks = 1 + (z > of_target[..., None]).sum(-1)
    return losses, z.argmax(-1), ranks, sampled, allowed.argmax(-1), candidates, tails, gradient
