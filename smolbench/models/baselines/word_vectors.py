"""Pretrained word vectors in text files: GloVe's format and word2vec's."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from smolbench.errors import SmolbenchError


def check_vectors(path: Path, dimension: int) -> None:
    """Refuse a file that is missing, or whose first row has another number of values.

    Raises:
        SmolbenchError: Saying which.
    """
    with _opened(path) as file:
        _skip_header(path, file, dimension)


def read_vectors(
    path: Path, words: Sequence[str], dimension: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Read the vectors of some words.

    A file has a word and its values per line, separated by single blanks (GloVe), and may begin
    with a line of two numbers, how many words and values there are (word2vec's text format). A word
    may have blanks in it, as a few of GloVe's have. Of a word that stands there twice the first
    vector counts. Files that end in ``.gz`` are compressed.

    Args:
        path: The file.
        words: ``W`` words.
        dimension: Values per word, ``D``.

    Returns:
        The vectors, shape ``(W, D)``, zeros for words that are not there; and which are there,
        shape ``(W,)``.

    Raises:
        SmolbenchError: If the file cannot be read or is malformed, its vectors have another
            dimension, or none of the words is in it.
    """
    numbers = {word.encode(): number for number, word in enumerate(words)}
    vectors = np.zeros((len(words), dimension), dtype=np.float32)
    found = np.zeros(len(words), dtype=np.bool_)
    with _opened(path) as file:
        first_row = _skip_header(path, file, dimension)
        for row, raw in enumerate(file, start=first_row):
            line = raw.rstrip()
            blanks = line.count(b" ")
            if blanks < dimension:
                if not line:
                    continue
                raise SmolbenchError(
                    f"{path}, line {row}: {blanks} values stand behind the word, not {dimension} "
                    "as in the lines before; the file is cut off or no file of word vectors."
                )
            word = line.split(b" ", 1)[0] if blanks == dimension else b""
            number = numbers.get(word)
            if number is None or found[number]:
                continue
            vectors[number] = _values(path, row, line)
            found[number] = True
    if not found.any():
        raise SmolbenchError(
            f"None of the {len(words):,} words of the training texts stands in {path}: the texts' "
            "words are in lower case; give vectors of their language."
        )
    return vectors, found


def _skip_header(path: Path, file: BinaryIO, dimension: int) -> int:
    """Go behind word2vec's header, if there is one, and compare the number of values per word.

    Returns:
        Number of the first line with a vector, counted from 1.
    """
    first = file.readline().rstrip()
    fields = first.split(b" ")
    header = len(fields) == 2 and all(field.isdigit() for field in fields)
    given = int(fields[1]) if header else len(fields) - 1
    if not given:
        what = "is empty" if not first else "has no values behind the first line's word"
        raise SmolbenchError(
            f"{path} {what}: a file of word vectors has a word and its values per line, separated "
            "by blanks."
        )
    if not header:
        _values(path, 1, first)
        file.seek(0)
    if given != dimension:
        raise SmolbenchError(
            f"The vectors in {path} have {given} values, but model.embedding_dim is {dimension}: "
            f"give --model.embedding_dim {given}, or another file."
        )
    return 2 if header else 1


def _values(path: Path, row: int, line: bytes) -> npt.NDArray[np.float32]:
    try:
        values = np.array(line.split(b" ")[1:], dtype=np.float32)
    except ValueError as error:
        raise SmolbenchError(
            f"{path}, line {row}: what stands behind the word is no number ({error}); a file of "
            "word vectors has a word and its values per line, separated by blanks."
        ) from error
    if not np.isfinite(values).all():
        raise SmolbenchError(f"{path}, line {row}: a value is not finite.")
    return values


@contextmanager
def _opened(path: Path) -> Generator[BinaryIO, None, None]:
    """Open a file of vectors; what goes wrong in reading it is said in a sentence."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SmolbenchError(
            f"model.vectors is {path}, which {what}: give a text file of word vectors, such as "
            "glove.6B.300d.txt, also compressed (.gz)."
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SmolbenchError(f"{path} is not a whole gzip file ({error}).") from error
    except OSError as error:
        raise SmolbenchError(f"{path} cannot be read ({error.strerror or error}).") from error
