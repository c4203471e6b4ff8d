"""Losses and texts of summarizers, beside those of transformers."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.trainer_pt_utils import LabelSmoother

from smolbench.data.batching import IGNORE_LABEL, TokenRows
from smolbench.data.token_cache import encode_to_cache
from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.backbone import TINY_T5
from smolbench.models.pretrained.language_model import LanguageModel
from smolbench.models.summaries.rows import CausalRows, SummaryEncoder, usual_template
from smolbench.models.summaries.summarizer import (
    NO_TOKEN,
    Decoding,
    encoder_output,
    ended_by_itself,
    generate_ids,
    load_summarizer,
    own_settings,
    target_losses,
)
from tests.helpers.tiny import EOS, TEXTS, tiny_summarizer

ENCODER_DECODER = ["t5", "bart"]
CAUSAL = ["llama", "gpt2", "gpt_neo", "opt"]
SUMMARIES = ["Warm and funny.", "Dull!", "Too late for anyone.", "Fine", "A waste.", "Twice", "ok"]
DOCUMENTS = [*TEXTS[:-1], " ".join(TEXTS)]  # of very different lengths


class Case:
    """A tiny model with the examples as a batch."""

    def __init__(self, kind: str, folder, documents=DOCUMENTS) -> None:
        self.causal = kind in CAUSAL
        backbone = LanguageModel(
            kind if kind == TINY_T5 else tiny_summarizer(kind), None, "float32"
        )
        self.path = backbone.location
        self.model = load_summarizer(backbone, torch.float32)
        template = usual_template(backbone.config.model_type, causal=self.causal)
        self.encoder = SummaryEncoder(backbone.tokenizer, template, 90, 12, causal=self.causal)
        examples = {"document": documents, "summary": SUMMARIES[: len(documents)]}
        self.table = encode_to_cache(
            folder / kind,
            "key",
            lambda start, stop: {k: v[start:stop] for k, v in examples.items()},
            len(documents),
            self.encoder.encode,
            "Encoding",
        )
        pad = backbone.config.pad_token_id
        rows = CausalRows(self.table, pad) if self.causal else TokenRows(self.table, None, pad)
        self.batch = rows.batch(np.arange(len(documents)))

    def plain(self):
        loader = AutoModelForCausalLM if self.causal else AutoModelForSeq2SeqLM
        return loader.from_pretrained(self.path, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", [*ENCODER_DECODER, *CAUSAL])
def test_the_loss_is_that_of_transformers(tmp_path, kind):
    case = Case(kind, tmp_path)
    inputs = {name: case.batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        outputs = case.plain()(**inputs)
        losses = target_losses(case.model, case.batch)
        smooth = target_losses(case.model, case.batch, smoothing=0.1)
    known = case.batch["labels"] != IGNORE_LABEL
    torch.testing.assert_close(losses.sum() / known.sum(), outputs.loss, rtol=1e-5, atol=1e-5)
    assert losses[~known].eq(0).all()
    expected = LabelSmoother(epsilon=0.1)(
        outputs, case.batch["labels"].clone(), shift_labels=case.causal
    )
    torch.testing.assert_close(smooth.sum() / known.sum(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*ENCODER_DECODER, *CAUSAL])
def test_the_gradient_is_that_of_transformers(tmp_path, kind):
    case = Case(kind, tmp_path)
    plain = case.plain()
    plain(**{k: case.batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss.backward()
    known = case.batch["labels"] != IGNORE_LABEL
    (target_losses(case.model, case.batch).sum() / known.sum()).backward()
    expected = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", [TINY_T5, *ENCODER_DECODER, *CAUSAL])
def test_texts_are_those_of_plain_generate_one_by_one(tmp_path, kind, num_beams):
    case = Case(kind, tmp_path)
    plain, end = case.plain(), case.encoder.end
    found = generate_ids(case.model, case.batch, Decoding(9, num_beams), frozenset({end}))
    assert found.shape == (len(DOCUMENTS), 9)
    for row, document in enumerate(DOCUMENTS):
        ids = torch.tensor([case.encoder.encode({"document": [document]})["input_ids"][0]])
        written = plain.generate(
            input_ids=ids, max_new_tokens=9, num_beams=num_beams, do_sample=False
        )[0, ids.shape[1] if case.causal else 1 :].tolist()
        written = written[: written.index(end) + 1] if end in written else written
        assert [token for token in found[row].tolist() if token != NO_TOKEN] == written
    assert len({tuple(row.tolist()) for row in found}) > 1  # the documents make a difference


def never(*_):
    raise AssertionError("The encoder is run again.")


@pytest.mark.parametrize("kind", ENCODER_DECODER)
def test_the_encoder_is_run_once_for_losses_and_texts(tmp_path, kind):
    case = Case(kind, tmp_path)
    with torch.no_grad():
        encoded = encoder_output(case.model, case.batch)
        expected = target_losses(case.model, case.batch)
        decoding = Decoding(6, 3), frozenset({EOS})
        written = generate_ids(case.model, case.batch, *decoding)
        case.model.get_encoder().register_forward_pre_hook(never)
        torch.testing.assert_close(target_losses(case.model, case.batch, 0.0, encoded), expected)
        assert torch.equal(generate_ids(case.model, case.batch, *decoding, encoded), written)


def test_what_stands_behind_the_end_is_left_out(tmp_path, monkeypatch):
    case = Case("t5", tmp_path, DOCUMENTS[:2])
    made = torch.tensor([[1, 7, EOS, 9, EOS], [1, 7, 8, 9, 9]])
    monkeypatch.setattr(case.model, "generate", lambda **options: made)
    found = generate_ids(case.model, case.batch, Decoding(5, 1), frozenset({EOS}))
    assert found.tolist() == [[7, EOS, -1, -1, -1], [7, 8, 9, 9, EOS]]


# -- rows -----------------------------------------------------------------------------------------


def encoder(kind="t5", max_length=90, template=None, **options):
    backbone = LanguageModel(tiny_summarizer(kind), None, "float32")
    causal = kind in CAUSAL
    template = template or usual_template(backbone.config.model_type, causal=causal)
    options = {"max_summary_length": 12, "causal": causal, **options}
    return SummaryEncoder(backbone.tokenizer, template, max_length, **options)


def test_an_end_that_was_forced_is_not_taken_for_the_models_own(tmp_path):
    """Though both stand at the last place that is allowed."""
    case = Case("bart", tmp_path)
    ends = frozenset({EOS})

    def written(most):
        with torch.no_grad():
            ids = generate_ids(case.model, case.batch, Decoding(most, 1), ends)
            return ids, ended_by_itself(case.model, case.batch, ids, ends)

    case.model.generation_config.forced_eos_token_id = None
    for _ in range(20):
        case.model.final_logits_bias[0, EOS] += 0.5  # until some end
        ids, ended = written(40)
        lengths = (ids != NO_TOKEN).sum(dim=1)
        assert torch.equal(ended, (ids == EOS).any(dim=1))
        natural = sorted({int(n) for n in lengths[ended]} - {1})
        if len(natural) > 1:
            break
    assert len(natural) > 1, "nothing is compared"
    case.model.generation_config.forced_eos_token_id = EOS
    for most in natural:
        ids, by_itself = written(most)
        assert ((ids == EOS).any(dim=1)).all()
        assert torch.equal(by_itself, ended & (lengths <= most))


def test_what_the_models_own_settings_add_is_known(tmp_path):
    case = Case("bart", tmp_path)
    ends = frozenset({EOS})
    usual = {"forced_eos_token_id": EOS}  # of every BART
    assert own_settings(case.model, Decoding(8, 2), ends) == usual
    own = {**usual, "no_repeat_ngram_size": 2, "length_penalty": 2.0, "early_stopping": True}
    for name, value in own.items():
        setattr(case.model.generation_config, name, value)
    case.model.generation_config.top_k = 3  # nothing is drawn
    assert own_settings(case.model, Decoding(8, 2), ends) == own
    assert own_settings(case.model, Decoding(8, 1), ends) == {**usual, "no_repeat_ngram_size": 2}
    # and that is what has been done
    with torch.no_grad():
        ids = generate_ids(case.model, case.batch, Decoding(30, 1), ends)
    for row in ids.tolist():
        pairs = [pair for pair in itertools.pairwise(row) if NO_TOKEN not in pair]
        assert len(pairs) == len(set(pairs))


def test_another_search_of_the_model_is_left_out_or_refused(tmp_path):
    case = Case("bart", tmp_path)
    ends = frozenset({EOS})
    with torch.no_grad():
        plain = generate_ids(case.model, case.batch, Decoding(8, 4), ends)
        for name, value in {
            "num_beam_groups": 2,
            "diversity_penalty": 0.5,
            "num_return_sequences": 2,
            "penalty_alpha": 0.6,
        }.items():
            setattr(case.model.generation_config, name, value)
        assert torch.equal(generate_ids(case.model, case.batch, Decoding(8, 4), ends), plain)
    folder = tmp_path / "dola"
    shutil.copytree(tiny_summarizer("gpt2"), folder)
    (folder / "generation_config.json").write_text('{"dola_layers": "low"}')
    with pytest.raises(SmolbenchError, match=r"asks for dola generation, and summaries are"):
        load_summarizer(LanguageModel(str(folder), None, "float32"), torch.float32)


def test_rows_are_what_the_tokenizer_makes_of_the_whole():
    made = encoder("t5")
    tokenizer = AutoTokenizer.from_pretrained(tiny_summarizer("t5"))
    found = made.encode({"document": TEXTS, "summary": SUMMARIES})
    assert found["input_ids"] == [tokenizer(f"summarize: {text}")["input_ids"] for text in TEXTS]
    assert found["labels"] == [tokenizer(text)["input_ids"] for text in SUMMARIES]
    assert all(row[-1] == EOS for row in [*found["input_ids"], *found["labels"]])
    assert not any(found["cut"])


def test_a_causal_row_goes_on_with_the_summary_and_ends(tmp_path):
    case = Case("gpt2", tmp_path)
    tokenizer = case.encoder.tokenizer
    lengths = case.batch["attention_mask"].sum(dim=1)
    for row, document in enumerate(DOCUMENTS[:-1]):
        ids = case.batch["input_ids"][row, : lengths[row]].tolist()
        assert tokenizer.decode(ids[:-1]) == f"Summarize: {document} Summary: {SUMMARIES[row]}"
        assert ids[-1] == EOS
        labels = case.batch["labels"][row]
        assert labels[labels != IGNORE_LABEL].tolist() == case.table.ragged["labels"][row].tolist()
        assert (labels[lengths[row] :] == IGNORE_LABEL).all()


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_long_documents_lose_their_end_but_not_the_template(kind):
    document = " ".join(TEXTS)
    whole, short = encoder(kind, 1000), encoder(kind, 40)
    (full,) = whole.encode({"document": [document]})["input_ids"]
    found = short.encode({"document": [document, TEXTS[0]]})
    assert found["cut"] == [True, False]
    assert len(found["input_ids"][0]) == 40
    tail = len(short.documents.suffix_ids) + len(short.documents.tail_ids)
    assert found["input_ids"][0] == full[: 40 - tail] + (full[-tail:] if tail else [])
    exact = encoder(kind, len(full))
    assert exact.encode({"document": [document]}) == {"input_ids": [full], "cut": [False]}


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2"])
def test_long_summaries_are_cut_and_still_end(kind):
    (row,) = encoder(kind).summaries([" ".join(TEXTS)])
    assert len(row) == 12
    assert row[-1] == EOS


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2"])
def test_summaries_that_are_cut_are_known(kind):
    summaries = [" ".join(TEXTS), SUMMARIES[0], " ".join(TEXTS[:2])]
    whole = encoder(kind, max_summary_length=500).summaries(summaries)
    lengths = sorted(map(len, whole))
    for length in lengths:  # also one that just fits
        found = encoder(kind, max_summary_length=length).encode(
            {"document": TEXTS[:3], "summary": summaries}
        )
        assert found["summary_cut"] == [len(row) > length for row in whole]


def test_words_for_a_line_break_are_line_breaks():
    made = encoder("t5")
    assert made.broken("one <n> two") == "one <n> two"
    plain = made.tokenizer("It was fine")["input_ids"][:-1]
    assert made.texts([*plain, EOS]) == "It was fine"
    made = encoder("t5")
    made.tokenizer.add_tokens(["<n>"])
    token = made.tokenizer.convert_tokens_to_ids("<n>")
    assert made.texts([*plain, token, *plain, token, EOS]) == "It was fine\nIt was fine"
    assert made.broken("one<n>two") == "one\ntwo"


def test_a_summary_without_an_end_token_of_its_own_is_no_longer_than_allowed():
    tokenizer = AutoTokenizer.from_pretrained(tiny_summarizer("gpt2"))  # puts none behind a row
    encoder = SummaryEncoder(tokenizer, "{text}", 90, 4, causal=False)
    for row in encoder.summaries(["Twice in one week, again and again.", "ok"]):
        assert len(row) <= 4
        assert row[-1] == EOS


def test_a_tokenizer_without_an_end_is_refused():
    made = encoder("gpt2")
    made.tokenizer.eos_token = None
    with pytest.raises(SmolbenchError, match="no summary would ever end"):
        SummaryEncoder(made.tokenizer, "{text}", 90, 12, causal=True)


def test_the_key_tells_settings_apart():
    keys = [
        encoder("t5").key(),
        encoder("t5", 40).key(),
        encoder("t5", max_summary_length=9).key(),
        encoder("t5", template="{text}").key(),
        encoder("gpt2").key(),
    ]
    assert all(one != other for i, one in enumerate(keys) for other in keys[:i])
