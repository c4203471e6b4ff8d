"""Neural baselines that start from words, not from a pretrained network: CNN and LSTM."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import nn

from smolbench import identity
from smolbench.data import TextDataModule
from smolbench.data.batching import Rows, TokenRows, pad_rows
from smolbench.data.columns import column_digest, column_values
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.baselines.cnn import TextCNN
from smolbench.models.baselines.embedding import put_vectors, random_embedding
from smolbench.models.baselines.lstm import TextLSTM
from smolbench.models.baselines.vocabulary import PAD_ID, UNKNOWN_ID, Vocabulary, remembered
from smolbench.models.baselines.word_vectors import check_vectors
from smolbench.models.baselines.words import SAMPLE, Split, Tokens, split_of, tell_unread
from smolbench.tasks.base import CHECKPOINT_KEY, Schedule, Warmup, saved_signature
from smolbench.tasks.classification import Batch, ClassificationTask
from smolbench.tasks.pretrained import refuse_unused
from smolbench.utils.digest import file_digest

log = logging.getLogger("smolbench")

Network = Literal["cnn", "lstm"]
_SAVED = "vocabulary"
"""Name of the words in what a checkpoint says of its origin."""


class NeuralBaselineTask(ClassificationTask):
    """Train a small network on words: convolutions (Kim 2014) or a bidirectional LSTM.

    Its vocabulary are the most frequent words of the training split, in lower case (see
    :func:`~smolbench.models.baselines.vocabulary.split_words`). It is found once, kept on disk for
    runs on the same texts, and saved in every checkpoint. Nothing else is read but the texts and,
    if given, a local file of pretrained word vectors.

    Args:
        network: ``cnn``: windows of words, the largest answer of each filter, see
            :class:`~smolbench.models.baselines.cnn.TextCNN`. ``lstm``: see
            :class:`~smolbench.models.baselines.lstm.TextLSTM`.
        vocabulary_size: Most words in the vocabulary; rarer ones are one unknown word.
        min_count: How often a word must occur in the training texts to be in it.
        tokens: What a word is. ``words``: a run of letters and digits with their marks;
            ``characters``: of Chinese, Japanese, Thai, Lao, Khmer and Burmese, which put no spaces
            between words, each character; ``auto``: characters where a tenth of the training
            texts' letters are of these scripts.
        max_length: Longest text in words.
        truncation_side: Which end of a longer text is cut off.
        embedding_dim: Values of a word's vector.
        vectors: Text file of pretrained word vectors, in GloVe's or word2vec's format, also
            compressed (``.gz``); random ones if not given. It is read when a training begins, and
            never again: checkpoints hold the vectors.
        freeze_vectors: Whether the words' vectors stay as they are (Kim's CNN-static).
        filters: Filters of each width (``cnn``); 100 if not given.
        filter_widths: Words that filters look at together (``cnn``); 3, 4 and 5 if not given.
        hidden_size: Width of the state in each direction (``lstm``); 128 if not given.
        num_layers: Layers on top of each other (``lstm``); 1 if not given.
        dropout: Share of what is dropped in training.
        num_classes: Number of classes, for data that does not name its labels.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay, on matrices only.
        warmup_steps: Optimiser steps over which the learning rate rises from 0, or (0.1) their
            share of all planned steps.
        schedule: What the learning rate does after the warm-up.

    Raises:
        SmolbenchError: If the settings contradict each other.
    """

    drawn = "the vocabulary"
    drawn_for = ("fit",)

    def __init__(
        self,
        *,
        network: Network = "cnn",
        vocabulary_size: int = 30_000,
        min_count: int = 2,
        tokens: Tokens = "auto",
        max_length: int = 400,
        truncation_side: Literal["left", "right"] = "right",
        embedding_dim: int = 100,
        vectors: str | None = None,
        freeze_vectors: bool = False,
        filters: int | None = None,
        filter_widths: list[int] | None = None,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        dropout: float = 0.5,
        num_classes: int | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: Warmup = 0,
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            schedule=schedule,
        )
        self.save_hyperparameters()
        refuse_unused(
            network,
            {
                "filters": (filters, ("cnn",)),
                "filter_widths": (filter_widths, ("cnn",)),
                "hidden_size": (hidden_size, ("lstm",)),
                "num_layers": (num_layers, ("lstm",)),
            },
            chosen_by="network",
        )
        self.filters = 100 if filters is None else filters
        self.filter_widths = [3, 4, 5] if filter_widths is None else list(filter_widths)
        self.hidden_size = 128 if hidden_size is None else hidden_size
        self.num_layers = 1 if num_layers is None else num_layers
        counts = {
            "vocabulary_size": vocabulary_size,
            "min_count": min_count,
            "max_length": max_length,
            "embedding_dim": embedding_dim,
            "filters": self.filters,
            "filter_widths": min(self.filter_widths, default=0),
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
        }
        for name, value in counts.items():
            if value < 1:
                raise SmolbenchError(f"model.{name} must be at least 1, but is {value}.")
        if not 0 <= dropout < 1:
            raise SmolbenchError(f"model.dropout must be in [0, 1), but is {dropout}.")
        if freeze_vectors and vectors is None:
            raise SmolbenchError(
                "model.freeze_vectors keeps pretrained vectors as they are, but there are none: "
                "give model.vectors, or leave it out."
            )
        self.method: Network = network
        self.vocabulary_size = vocabulary_size
        self.min_count = min_count
        self.tokens: Tokens = tokens
        self.max_length = max_length
        self.truncation_side: Literal["left", "right"] = truncation_side
        self.embedding_dim = embedding_dim
        self.vectors = None if vectors is None else Path(vectors).expanduser()
        self.freeze_vectors = freeze_vectors
        self.dropout = dropout
        self.network: TextCNN | TextLSTM | None = None
        self._vocabulary: Vocabulary | None = None
        self._continues = False
        self._pretrained_words: int | None = None
        self._vectors_digest: str | None = None

    # -- words ------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that have numbers: a checkpoint's, or those of the training split.

        Raises:
            SmolbenchError: If there is neither, or no word.
        """
        if self._vocabulary is None:
            data = self.any_data
            if not isinstance(data, TextDataModule):
                raise SmolbenchError(
                    f"{type(self).__name__} takes its vocabulary from the training texts of a "
                    "smolbench DataModule or from a checkpoint, and has neither."
                )
            self._vocabulary = self._words_of(data)
            self._draw()
        return self._vocabulary

    def _words_of(self, data: TextDataModule) -> Vocabulary:
        """Count the words of the training split, or read what an earlier count has left."""
        texts = data.split("train").examples
        words = column_values(texts, "text")
        some = texts.select(range(0, len(texts), max(1, len(texts) // SAMPLE)))
        split = split_of(self.tokens, some["text"][:])
        key = {
            "words": split,
            "vocabulary_size": self.vocabulary_size,
            "min_count": self.min_count,
            "texts": column_digest(texts, "text"),
        }
        path = data.cache_dir / "vocabularies" / f"{identity.key('cache', key)}.json"
        return remembered(
            path,
            lambda: Vocabulary.of_texts(words, self.vocabulary_size, self.min_count, split),
            split,
        )

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """Numbers of the texts' words, at least one each."""
        rows = map(self.vocabulary.encode, examples["text"])
        if self.truncation_side == "left":
            return {"input_ids": [row[-self.max_length :] for row in rows]}
        return {"input_ids": [row[: self.max_length] for row in rows]}

    def encoder_key(self) -> dict[str, Any]:
        """See the base class."""
        return {
            "encoder": self.vocabulary.split,
            "vocabulary": self.vocabulary.digest,
            "max_length": self.max_length,
            "truncation_side": self.truncation_side,
        }

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """Numbers of words of a split; another encoder's would not fit the vocabulary.

        Args:
            split: Name of the split.
            table: The split's words.
            labels: Classes, shape ``(N,)``; ``None`` for texts to predict.
        """
        if self.trainer.is_global_zero:
            unread = table.ragged["input_ids"].largest_of_rows <= UNKNOWN_ID
            tell_unread(split, int(unread.sum()), len(table))
        return TokenRows(table, labels, PAD_ID)

    def start_reading(self) -> Callable[[Sequence[str]], Batch]:
        """Turn texts into numbers of words; see the base class."""

        def read(texts: Sequence[str]) -> Batch:
            batch = pad_rows(self.encode({"text": texts})["input_ids"], PAD_ID)
            return {name: value.to(self.device) for name, value in batch.items()}

        return read

    # -- the network ------------------------------------------------------------------------------

    def check_inputs(self) -> None:
        """Refuse a file of vectors that is missing or of another dimension; see the base class."""
        if self.vectors is not None and not self._continues:
            check_vectors(self.vectors, self.embedding_dim)

    @property
    def can_build(self) -> bool:
        """See the base class; the vocabulary says how large the embedding is."""
        return super().can_build and (self._vocabulary is not None or self._trainer is not None)

    def build_model(self) -> None:
        """Draw the network's weights from the run's seed, and read the pretrained vectors."""
        classes = len(self.label_names)
        # on the CPU, from its generator alone: the same weights whatever device they are moved to
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(self.seed)
            embedding = random_embedding(len(self.vocabulary), self.embedding_dim)
            if self.vectors is not None and not self._continues:
                self._pretrained_words = put_vectors(embedding, self.vectors, self.vocabulary)
                self._vectors_digest = file_digest([self.vectors])
            self.network = self._drawn(embedding, classes)
        embedding.requires_grad_(not self.freeze_vectors)

    def _drawn(self, embedding: nn.Embedding, classes: int) -> TextCNN | TextLSTM:
        if self.method == "cnn":
            return TextCNN(embedding, classes, self.filter_widths, self.filters, self.dropout)
        return TextLSTM(embedding, classes, self.hidden_size, self.num_layers, self.dropout)

    def on_fit_start(self) -> None:
        """Say in one line what trains, and on how many words."""
        if not self.trainer.is_global_zero:
            return
        found, words = self._pretrained_words, len(self.vocabulary.words)
        log.info(
            "Training a %s of %s parameters on a vocabulary of %s words%s.",
            self.method.upper(),
            f"{sum(p.numel() for p in self.parameters() if p.requires_grad):,}",
            f"{words:,}",
            "" if found is None else f", {found:,} of them with pretrained vectors",
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits ``(B, C)``, float32, of right-padded rows ``input_ids`` ``(B, T)``."""
        assert self.network is not None, "configure_model runs first"
        logits: torch.Tensor = self.network(batch["input_ids"], batch["attention_mask"])
        return logits.float()

    # -- what results and checkpoints say ---------------------------------------------------------

    def signature(self) -> dict[str, Any]:
        """Words, rows and the network's shape; see the base class."""
        shape: dict[str, Any]
        if self.method == "cnn":
            shape = {"filters": self.filters, "filter_widths": self.filter_widths}
        else:
            shape = {"hidden_size": self.hidden_size, "num_layers": self.num_layers}
        return {
            **super().signature(),
            "network": self.method,
            "embedding_dim": self.embedding_dim,
            "freeze_vectors": self.freeze_vectors,
            **self.encoder_key(),
            **shape,
        }

    def trained_names(self) -> set[str]:
        """Also the words' vectors, where they are frozen: their file is not read again."""
        return super().trained_names() | {"network.embedding.weight"}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the words, too; see the base class."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY][_SAVED] = self.vocabulary.lines

    def before_data(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the words from the checkpoint: texts are encoded by them; see the base class.

        Raises:
            SmolbenchError: If it is of another task, or its words are damaged.
        """
        signature = saved_signature(checkpoint, type(self).__name__)
        lines = checkpoint[CHECKPOINT_KEY].get(_SAVED)
        split = signature.get("encoder")
        known = isinstance(lines, str) and split in get_args(Split)
        vocabulary = Vocabulary.of_lines(lines, cast("Split", split)) if known else None
        if vocabulary is None or vocabulary.digest != signature.get("vocabulary"):
            raise SmolbenchError("The vocabulary in the checkpoint is damaged: train anew.")
        self._vocabulary = vocabulary
        self._continues = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the words where nothing has counted them; see the base class."""
        if self._vocabulary is None:
            self.before_data(checkpoint)
            if not self.labels_to_come:
                self.configure_model()
        super().on_load_checkpoint(checkpoint)

    def facts(self) -> dict[str, Any]:
        """The network, its words, and which of their vectors came pretrained."""
        total = sum(p.numel() for p in self.parameters())
        facts = {
            **super().facts(),
            "model/id": f"words-{self.method}",
            "model/revision": None,
            "model/total_params": total,
        }
        if self._vocabulary is not None:
            facts["model/vocabulary_words"] = len(self._vocabulary.words)
            facts["model/tokens"] = self._vocabulary.split.partition("-")[0]
        if self._pretrained_words is not None:
            assert self.vectors is not None, "they were read from there"
            facts["model/vectors"] = self.vectors.name
            facts["model/vectors_words"] = self._pretrained_words
            facts["model/vectors_digest"] = self._vectors_digest
        return facts
