"""Files of text: compression, encodings, and what is wrong with their bytes."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

from smolbench.data.files.readers.base import FileReader, unreadable
from smolbench.errors import SmolbenchError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TextReader(FileReader):
    """A file of text, perhaps compressed."""

    @contextmanager
    def _opened(self) -> Generator[TextIO, None, None]:
        """Open the file; failures become sentences.

        Bytes that are not valid are kept as lone surrogates, so that the row can be named.
        """
        compressed = self.name.lower().endswith(".gz")
        encoding = "utf-8-sig" if self._assumes_utf8() else self.encoding
        try:
            with gzip.open(self.path) if compressed else self.path.open("rb") as raw:
                start = raw.read(4)
                raw.seek(0)
                if not start:
                    raise SmolbenchError(f"{self.path} is empty: name a file with rows.")
                if start[:2] in _UTF16 and self._assumes_utf8():
                    raise SmolbenchError(
                        f"{self.name} starts like a UTF-16 file, but was to be read as"
                        f" {self.encoding}: save it as UTF-8, or add {self.prefix}encoding utf-16."
                    )
                with io.TextIOWrapper(
                    raw,  # a GzipFile will do too
                    encoding=encoding,
                    errors="surrogateescape",
                    newline="",
                ) as file:
                    yield file
        except UnicodeError as error:  # in an encoding whose bytes are not kept so
            raise SmolbenchError(
                f"{self.name} cannot be read as {self.encoding} ({error}): name its encoding with"
                f" {self.prefix}encoding."
            ) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SmolbenchError(
                f"{self.path} is not a whole gzip file ({error}): compress it again."
            ) from error
        except OSError as error:
            raise SmolbenchError(unreadable(self.path, error)) from error

    def remarks(self) -> list[str]:
        """Says that the bytes make sense as UTF-8 where they were read as something else."""
        if self._assumes_utf8() or not self._is_utf8():
            return []
        return [
            f"{self.name} was read as {self.encoding}, and all of its bytes are valid UTF-8: if"
            f" letters with accents come out as two or three others, leave {self.prefix}encoding"
            " out."
        ]

    def _is_utf8(self) -> bool:
        """Whether there are characters beyond ASCII and all are valid UTF-8."""
        compressed = self.name.lower().endswith(".gz")
        decoder, beyond = codecs.getincrementaldecoder("utf-8")(), False
        with gzip.open(self.path) if compressed else self.path.open("rb") as raw:
            try:
                while block := raw.read(1 << 20):
                    beyond = beyond or not block.isascii()
                    decoder.decode(block)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                return False
        return beyond

    def _assumes_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name in {"utf-8", "utf-8-sig"}
