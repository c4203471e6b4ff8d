from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from smolbench.errors import SmolbenchError
from smolbench.models.baselines.embedding import put_vectors, random_embedding
from smolbench.models.baselines.vocabulary import PAD_ID, UNKNOWN_ID, Vocabulary
from smolbench.models.baselines.word_vectors import check_vectors, read_vectors

GLOVE = b"good 0.1 -0.2\nbad 1e-1 2\n. . 3 4\ngood 9 9\n"
WORDS = ["bad", "film", "good"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("glove.txt", GLOVE),
        ("word2vec.txt", b"4 2\n" + GLOVE.replace(b"\n", b" \n")),  # its lines end in a blank
        ("windows.txt", GLOVE.replace(b"\n", b"\r\n")),
        ("glove.txt.gz", gzip.compress(GLOVE)),
    ],
    # gzip's bytes hold the time: as a name they would differ between pytest-xdist's workers
    ids=["glove", "word2vec", "windows", "gzip"],
)
def test_vectors_of_some_words(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    check_vectors(path, 2)
    vectors, found = read_vectors(path, WORDS, 2)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0.1, 2], [0, 0], [0.1, -0.2]], rtol=1e-6)
    assert found.tolist() == [True, False, True]


def test_words_without_a_vector_are_random_with_the_same_variance(tmp_path):
    path = tmp_path / "vectors.txt"
    drawn = np.random.default_rng(0).normal(scale=3.0, size=(500, 40))
    rows = [f"w{n} " + " ".join(map(str, row)) for n, row in enumerate(drawn)]
    path.write_text("\n".join(rows) + "\n")
    vocabulary = Vocabulary([f"w{n}" for n in range(1000)])
    embedding = random_embedding(len(vocabulary), 40)
    assert put_vectors(embedding, path, vocabulary) == 500
    weights = embedding.weight.detach()
    assert weights.requires_grad is False
    assert embedding.weight.requires_grad
    first = UNKNOWN_ID + 1
    torch.testing.assert_close(weights[first : first + 500], torch.tensor(drawn).float())
    assert float(weights[first + 500 :].std()) == pytest.approx(3.0, rel=0.05)
    assert float(weights[UNKNOWN_ID].abs().sum()) > 0
    assert float(weights[PAD_ID].abs().sum()) == 0


MALFORMED = {
    "empty": (b"", "is empty"),
    "prose": (b"Once\nupon a time\n", "no values behind the first line's word"),
    "no numbers": (b"once upon time\n", "line 1: what stands behind the word is no number"),
    "other dimension": (b"good 1 2 3\n", "have 3 values, but model.embedding_dim is 2: give"),
    "other header": (b"1 3\ngood 1 2 3\n", "have 3 values, but model.embedding_dim is 2: give"),
    "cut off": (b"bad 1 2\ngood 1", "line 2: 1 values stand behind the word, not 2"),
    "a word among numbers": (b"bad 1 2\ngood 1 x\n", "line 2: what stands behind the word"),
    "not finite": (b"bad 1 2\ngood 1 nan\n", "line 2: a value is not finite"),
    "other words": (b"gut 1 2\nschlecht 1 2\n", "None of the 3 words of the training texts"),
    "header only": (b"4 2\n", "None of the 3 words"),
    "binary": (bytes(range(256)), "line"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_a_sentence(tmp_path, case):
    content, sentence = MALFORMED[case]
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(SmolbenchError, match=sentence) as raised:
        read_vectors(path, WORDS, 2)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_or_no_gzip_is_a_sentence(tmp_path):
    with pytest.raises(SmolbenchError, match="does not exist"):
        check_vectors(tmp_path / "gone.txt", 2)
    with pytest.raises(SmolbenchError, match="is a folder"):
        check_vectors(tmp_path, 2)
    path = tmp_path / "vectors.txt.gz"
    for content in (GLOVE, gzip.compress(GLOVE * 99)[:-9]):
        path.write_bytes(content)
        with pytest.raises(SmolbenchError, match="is not a whole gzip file"):
            read_vectors(path, WORDS, 2)
