"""Parquet files."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from smolbench.data.files.readers.base import CHUNK_ROWS, FileReader, unreadable
from smolbench.data.tables import Chunk
from smolbench.errors import SmolbenchError


class ParquetReader(FileReader):
    """A Parquet file; rows are counted from 1."""

    def chunks(self) -> Iterator[Chunk]:
        """Read texts and labels."""
        columns = [column for _, column in self._wanted()]
        with self._opened() as file:
            first = 1
            for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
                self._refuse_invalid(batch)
                texts, labels = (batch.column(column).to_pylist() for column in columns)
                yield Chunk(texts, labels, range(first, first + len(texts)))
                first += len(texts)

    def columns(self) -> tuple[dict[str, Any], Sequence[int]]:
        """Read all columns, with their types."""
        with self._opened() as file:
            self._refuse_doubled(file.schema_arrow.names)
            table = file.read()
            self._refuse_invalid(table)
        return dict(zip(table.column_names, table.columns, strict=True)), range(
            1, table.num_rows + 1
        )

    @contextmanager
    def _opened(self) -> Generator[Any, None, None]:
        """Open the file and check its columns; failures become sentences."""
        import pyarrow as pa  # lazy: import cost
        import pyarrow.parquet as pq

        if not self._size():
            raise SmolbenchError(f"{self.path} is empty: name a file with rows.")
        try:
            with pq.ParquetFile(self.path) as file:
                self._check_types(file.schema_arrow)
                yield file
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, PermissionError):
                raise SmolbenchError(unreadable(self.path, error)) from error
            raise SmolbenchError(
                f"{self.path} is not a whole Parquet file ({_brief(error)}): write or download it"
                " again."
            ) from error

    def _refuse_invalid(self, rows: Any) -> None:  # noqa: ANN401 - pyarrow has no types
        """Refuse strings that are not UTF-8, which other programs may have written."""
        import pyarrow as pa  # lazy: import cost

        try:
            rows.validate(full=True)
        except pa.ArrowInvalid as error:
            raise SmolbenchError(
                f"{self.name} is not valid ({_brief(error)}): {self.encoding_advice()}."
            ) from error

    def encoding_advice(self) -> str:
        """What to do about wrong bytes."""
        return "write the file again, with texts in UTF-8"

    def _check_types(self, schema: Any) -> None:  # noqa: ANN401 - pyarrow has no types
        import pyarrow.types as types  # lazy: import cost

        self._columns(schema.names)
        for option, column in self._wanted():
            kind = schema.field(column).type
            value = kind.value_type if types.is_dictionary(kind) else kind
            text = (
                types.is_string(value)
                or types.is_large_string(value)
                or str(value) == "string_view"
            )
            number = types.is_integer(value) or types.is_floating(value) or types.is_boolean(value)
            if not text and not (option == "label_column" and number):
                raise SmolbenchError(
                    f"{self.name}: the column {column!r} holds {kind},"
                    f" {'not names or numbers' if option == 'label_column' else 'not strings'};"
                    f" convert it, or name another column with {self.prefix}{option}."
                )


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
