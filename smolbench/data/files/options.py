"""A user's own rows: where they are, in files or on the Hub, and what options go together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smolbench.data.datamodule import VAL_FRACTION
from smolbench.data.files.readers import FileReader, Quoting, file_reader, has_quotes
from smolbench.data.hub import Source, load_hub
from smolbench.errors import SmolbenchError
from smolbench.utils.notices import warn

log = logging.getLogger("smolbench")

Where = Literal["files", "hub", "sample"]
TEST_FRACTION = 0.2
ENCODING = "utf-8"
TRAIN_SPLIT, TEST_SPLIT = "train", "test"
"""Defaults; whatever else is given must have something to act on."""


@dataclass(frozen=True)
class OwnRows:
    """Options that say where texts are and what belongs to each, as the DataModules have them.

    Attributes:
        train_file: File of the training rows.
        val_file: File of the validation rows.
        test_file: File of the test rows.
        text_column: Name of the column of the texts.
        other_column: Name of the column of what belongs to each.
        other_option: The option that names it.
        test_fraction: Share of the training rows for the test, where there are no test rows.
        encoding: Encoding of the files.
        quoting: What double quotes mean in CSV and TSV.
        dataset_id: A dataset on the Hub instead of files.
        dataset_config: Its configuration.
        train_split: Name of its training split.
        val_split: Name of its validation split.
        test_split: Name of its test split.
        revision: Its branch, tag or commit.
        val_fraction: Share of the training rows for validation, where there are no rows for it.
    """

    train_file: str | None
    val_file: str | None
    test_file: str | None
    text_column: str
    other_column: str
    other_option: str
    test_fraction: float
    encoding: str
    quoting: Quoting
    dataset_id: str | None
    dataset_config: str | None
    train_split: str
    val_split: str | None
    test_split: str | None
    revision: str | None
    val_fraction: float

    # -- what goes together -----------------------------------------------------------------------

    def check(self, where: Where | None, sample: str) -> None:
        """Refuse options that contradict each other, or that nothing would read.

        Args:
            where: What the user says; what is given decides if nothing.
            sample: What the built-in rows are, for a message.

        Raises:
            SmolbenchError: Naming the option.
        """
        if where == "sample":
            log.info("data.source is 'sample': %s are read, not %s.", sample, self.train_file)
        else:
            self._check_where(where or ("hub" if self.dataset_id else "files"))
            self._refuse_unread()
        if self.text_column == self.other_column:
            raise SmolbenchError(
                f"data.text_column and data.{self.other_option} are both {self.text_column!r}: "
                "they must be two columns."
            )
        if not 0 < self.test_fraction < 1:
            raise SmolbenchError(
                f"data.test_fraction must lie between 0 and 1, but is {self.test_fraction}."
            )
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError) as error:
            raise SmolbenchError(
                f"data.encoding {self.encoding!r} is not known: name one such as utf-8, cp1252, "
                "latin-1 or utf-16."
            ) from error

    def _check_where(self, where: Where) -> None:
        """Refuse options that do not say where the rows are, or say it twice."""
        if where == "files" and not self.train_file:
            raise SmolbenchError(
                "There is no data: give --data.train_file FILE, or --data.dataset_id for a dataset "
                "on the Hub."
            )
        if where == "hub" and not self.dataset_id:
            raise SmolbenchError("data.source is 'hub', so --data.dataset_id is needed.")
        file = self.train_file or self.val_file or self.test_file
        if self.dataset_id and file:
            raise SmolbenchError(
                f"Both data.dataset_id ({self.dataset_id}) and files ({file}) are given: give one "
                "of them, and null for the other."
            )
        if self.revision and not self.dataset_id:
            raise SmolbenchError(
                f"data.revision {self.revision!r} is for a dataset on the Hub; files have none: "
                "leave it out."
            )

    def _refuse_unread(self) -> None:
        """Refuse options that would have nothing to act on."""
        if self.dataset_id:
            if self.encoding != ENCODING:
                raise SmolbenchError(
                    f"data.encoding {self.encoding!r} is for files; {self.dataset_id} is a dataset "
                    "on the Hub: leave it out."
                )
            if self.quoting != "auto":
                raise SmolbenchError(
                    f"data.quoting {self.quoting!r} is for files; {self.dataset_id} is a dataset on"
                    " the Hub: leave it out."
                )
            has_val = None if self.val_split is None else f"data.val_split {self.val_split!r}"
            has_test = None if self.test_split is None else f"data.test_split {self.test_split!r}"
            without = "give data.test_split null to draw them from the training rows"
        else:
            for name, value, usual in (
                ("dataset_config", self.dataset_config, None),
                ("train_split", self.train_split, TRAIN_SPLIT),
                ("val_split", self.val_split, None),
                ("test_split", self.test_split, TEST_SPLIT),
            ):
                if value != usual:
                    raise SmolbenchError(
                        f"data.{name} {value!r} is for a dataset on the Hub, and {self.train_file} "
                        "is a file: leave it out. Files for other splits are data.val_file and "
                        "data.test_file."
                    )
            files = [file for file in (self.train_file, self.val_file, self.test_file) if file]
            if self.encoding != ENCODING and all(f.lower().endswith(".parquet") for f in files):
                raise SmolbenchError(
                    f"data.encoding {self.encoding!r} is for files of text; Parquet has one of its "
                    "own: leave it out."
                )
            if self.quoting != "auto" and not any(map(has_quotes, files)):
                raise SmolbenchError(
                    f"data.quoting {self.quoting!r} is for CSV and TSV, and no file is one: leave"
                    " it out."
                )
            has_val = None if self.val_file is None else f"data.val_file {self.val_file}"
            has_test = None if self.test_file is None else f"data.test_file {self.test_file}"
            without = "leave data.test_file out to draw them from the training rows"
        if has_val and self.val_fraction not in (0, VAL_FRACTION):  # 0: none is drawn, as it is
            raise SmolbenchError(
                f"data.val_fraction {self.val_fraction} and {has_val} both say what the validation "
                "rows are: leave one out."
            )
        if has_test and self.test_fraction != TEST_FRACTION:
            raise SmolbenchError(
                f"data.test_fraction {self.test_fraction} and {has_test} both say what the test "
                f"rows are: leave one out, or {without}."
            )

    # -- rows -------------------------------------------------------------------------------------

    def readers(self) -> Iterator[tuple[str, FileReader, str]]:
        """Readers of the files that are given, with their splits and digests of their contents.

        Warns if two hold the same.
        """
        digests: dict[str, str] = {}
        files = {"train": self.train_file, "val": self.val_file, "test": self.test_file}
        for split, given in files.items():
            if given is None:
                continue
            reader = file_reader(
                Path(given).expanduser(),
                self.text_column,
                self.other_column,
                self.encoding,
                f"{split}_file",
                label_option=self.other_option,
                quoting=self.quoting,
            )
            content = reader.digest()
            for other, same in digests.items():
                if same == content:
                    warn(
                        "%s_file and %s_file hold the same rows: what is measured on them says "
                        "nothing about new texts.",
                        other,
                        split,
                    )
            digests[split] = content
            yield split, reader, content

    def on_hub(self, dataset_id: str, revision: str | None) -> tuple[Source, dict[str, str]]:
        """The Hub dataset's splits that are wanted, by its own names, and what those are for."""
        named = {"train": self.train_split, "val": self.val_split, "test": self.test_split}
        wanted = {split: name for split, name in named.items() if name is not None}
        loaded = load_hub(
            dataset_id,
            config=self.dataset_config,
            revision=revision,
            splits=tuple(wanted.values()),
        )
        return loaded, wanted
