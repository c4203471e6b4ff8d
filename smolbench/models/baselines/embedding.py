"""The embedding of words that a network begins with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smolbench.models.baselines.vocabulary import PAD_ID, UNKNOWN_ID, Vocabulary
from smolbench.models.baselines.word_vectors import read_vectors

_BOUND = 0.25
"""Random vectors are drawn from the interval of this around 0, as in Kim (2014)."""


def random_embedding(size: int, dimension: int) -> nn.Embedding:
    """Uniform vectors, zero for padding, from the global random state.

    Args:
        size: Number of words, ``V``.
        dimension: Values per word, ``D``.
    """
    embedding = nn.Embedding(size, dimension, padding_idx=PAD_ID)
    with torch.no_grad():
        embedding.weight.uniform_(-_BOUND, _BOUND)
        embedding.weight[PAD_ID] = 0
    return embedding


def put_vectors(embedding: nn.Embedding, path: Path, vocabulary: Vocabulary) -> int:
    """Put pretrained vectors into an embedding, in place.

    Words without one keep their direction; they are scaled to the variance that the pretrained ones
    have (Kim 2014, section 4.3).

    Args:
        embedding: With random vectors, shape ``(V, D)``.
        path: File of vectors; see :func:`~smolbench.models.baselines.word_vectors.read_vectors`.
        vocabulary: The words.

    Returns:
        How many of the words have a pretrained vector.

    Raises:
        SmolbenchError: If the file cannot be used.
    """
    vectors, found = read_vectors(path, vocabulary.words, embedding.embedding_dim)
    bound = math.sqrt(3 * float(np.var(vectors[found], dtype=np.float64)))  # of a uniform variable
    with torch.no_grad():
        embedding.weight *= bound / _BOUND
        words = embedding.weight[UNKNOWN_ID + 1 :]
        words[torch.from_numpy(found)] = torch.from_numpy(vectors[found])
    return int(found.sum())
