"""Models that write summaries: encoder-decoder and causal ones, their losses and their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from smolbench.data.batching import IGNORE_LABEL
from smolbench.errors import SmolbenchError
from smolbench.models.choice.scoring import last_states, next_token_logits, token_log_probs
from smolbench.models.kernels.paths import Ways, run_by, ways_of
from smolbench.models.kernels.prefix import cache_argument
from smolbench.models.kernels.proof import Trials, pad, proven, same
from smolbench.models.pretrained.language_model import (
    LanguageModel,
    language_model_skeleton,
    load_language_model,
)
from smolbench.models.pretrained.quantization import keep_gradients

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel
    from transformers.cache_utils import EncoderDecoderCache

_CPU = torch.device("cpu")
Batch = Mapping[str, torch.Tensor]
NO_TOKEN = -1
"""Fills rows of generated tokens behind their end."""


@dataclass(frozen=True)
class Decoding:
    """How a summary is written: by the likeliest tokens, never drawn at random.

    Attributes:
        max_new_tokens: Most tokens of a summary, its end token included.
        num_beams: Beginnings that are followed at once; 1 is greedy.
    """

    max_new_tokens: int
    num_beams: int


# -- loading --------------------------------------------------------------------------------------


def load_summarizer(
    backbone: LanguageModel,
    dtype: torch.dtype,
    device: torch.device = _CPU,
    **options: Any,  # noqa: ANN401 - as transformers types them
) -> PreTrainedModel:
    """Load a model with its language-model head, in evaluation mode.

    Args:
        backbone: What to load: an encoder-decoder model or a causal one.
        dtype: Number format of the weights.
        device: Where it will run; it is loaded onto the CPU.
        **options: More for ``from_pretrained``, see
            :func:`~smolbench.models.pretrained.quantization.in_four_bits`.

    Raises:
        SmolbenchError: If the weights cannot be loaded or are incomplete, or the model cannot
            write texts.
    """
    if not backbone.config.is_encoder_decoder:
        causal = load_language_model(backbone, dtype, device, **options)
        _require_plain_search(causal, backbone.given)
        together = backbone.paths.decide("together", lambda: _is_blind_to_padding(causal, device))
        run_by(causal, replace(ways_of(causal), together=together))
        return causal
    from transformers import AutoModelForSeq2SeqLM  # lazy: import cost

    model, missing = backbone.from_pretrained(AutoModelForSeq2SeqLM, dtype=dtype, **options)
    backbone.require(missing)
    _require_plain_search(model, backbone.given)
    model.config.use_cache = False  # else every pass keeps all layers' keys and values
    keep_gradients(model)
    network: torch.nn.Module = model  # transformers' own methods are untyped
    network.eval()
    beams = backbone.paths.decide("beams", lambda: _beams_share(model, device))
    run_by(model, Ways(beams=beams))
    return model


def _is_blind_to_padding(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether prompts are continued behind padding as without it, tried on a twin.

    Recurrent networks may take padding into their state whatever a mask says.
    """
    from transformers import GenerationConfig  # lazy: import cost

    trials = Trials(model, device)

    def right() -> bool:
        how = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            use_cache=True,
            eos_token_id=0,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        write: Any = trials.exact.generate

        def logits(rows: Sequence[torch.Tensor]) -> torch.Tensor:
            ids, mask = pad(list(rows))
            prompts = left_padded({"input_ids": ids, "attention_mask": mask}, 0)
            return torch.stack(write(**prompts, generation_config=how).logits, dim=1)

        prompts = [trials.draw(length) for length in (23, 3, 40)]
        return same(logits(prompts), torch.cat([logits([prompt]) for prompt in prompts]))

    with torch.no_grad():
        return proven("Writing behind prompts of unlike lengths at once", right)


def _beams_share(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether beams that share their document write what ``generate`` writes, tried on a twin."""
    trials, decoding = Trials(model, device), Decoding(8, 4)

    def right() -> bool:
        twin, documents = trials.exact, [trials.draw(length) for length in (23, 3, 40)]
        ids, mask = pad(documents)
        ends = frozenset({int(ids[0, 0])})  # a token that may well be written
        run_by(twin, Ways(beams=True))
        found = generate_ids(twin, {"input_ids": ids, "attention_mask": mask}, decoding, ends)
        run_by(twin, Ways())
        config = _generation_config(twin, decoding, ends)
        plain: Any = twin.generate
        for row, document in zip(found, documents, strict=True):
            written = plain(input_ids=document[None], generation_config=config)[:, 1:]
            if not torch.equal(row[None], _until_end(written, decoding.max_new_tokens, ends)):
                return False
        return True

    with torch.no_grad():
        return proven("Sharing a document among its beams", right)


def _require_plain_search(model: PreTrainedModel, name: str) -> None:
    """Refuse a model whose own generation settings ask for another search than by beams.

    Raises:
        SmolbenchError: Naming the search.
    """
    config: Any = _with_own_settings(model, Decoding(1, 1), frozenset({0}))
    if (search := config.get_generation_mode().value) != "greedy_search":
        raise SmolbenchError(
            f"The generation_config.json of {name} asks for {search.replace('_', ' ')}, and "
            "summaries are written greedily or by beams: take what asks for it (constraints, "
            "force_words_ids, dola_layers, prompt_lookup_num_tokens) out of a copy of the folder."
        )


def summarizer_skeleton(backbone: LanguageModel) -> PreTrainedModel:
    """The model's modules on the meta device: names and shapes without weights."""
    if not backbone.config.is_encoder_decoder:
        return language_model_skeleton(backbone)
    from transformers import AutoModelForSeq2SeqLM  # lazy: import cost

    return backbone.skeleton(AutoModelForSeq2SeqLM)


# -- losses ---------------------------------------------------------------------------------------


def target_losses(
    model: PreTrainedModel,
    batch: Batch,
    smoothing: float = 0.0,
    encoded: Any = None,  # noqa: ANN401 - transformers has no type for it
) -> torch.Tensor:
    """Cross-entropy of every token of the summaries behind the true tokens before it.

    Args:
        model: From :func:`load_summarizer`.
        batch: ``input_ids`` and ``attention_mask`` ``(B, T)``, right-padded; ``labels``, the
            summaries' tokens and -100 elsewhere: ``(B, S)``, or of a causal model ``(B, T)``, at
            the places where the tokens stand in ``input_ids``.
        smoothing: Share of the target that is spread evenly over the vocabulary.
        encoded: The encoder's output, where it is known.

    Returns:
        Nats, float32, shape of ``labels``; 0 where there is no token.
    """
    labels = batch["labels"]
    known = labels != IGNORE_LABEL
    if not model.config.is_encoder_decoder:
        found = -token_log_probs(model, _states_before(model, batch), labels[known], smoothing)
        return torch.zeros(labels.shape, device=labels.device).masked_scatter(known, found)
    losses = F.cross_entropy(
        _decoder_logits(model, batch, encoded).float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORE_LABEL,
        reduction="none",
        label_smoothing=smoothing,
    )
    return losses.view(labels.shape)


def target_logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits that say how likely each token of the summaries is behind the true ones before it.

    Args:
        model: From :func:`load_summarizer`.
        batch: See :func:`target_losses`.

    Returns:
        Float32, shape ``(N, V)``: for the ``N`` tokens of the summaries, row after row.
    """
    if not model.config.is_encoder_decoder:
        return next_token_logits(model, _states_before(model, batch))
    return _decoder_logits(model, batch)[batch["labels"] != IGNORE_LABEL].float()


def _states_before(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """What a causal model says in front of each token of the summaries, shape ``(N, D)``."""
    states = last_states(model, {name: batch[name] for name in ("input_ids", "attention_mask")})
    # what stands before a token says how likely it is
    return states[:, :-1][batch["labels"][:, 1:] != IGNORE_LABEL]


def _decoder_logits(
    model: PreTrainedModel,
    batch: Batch,
    encoded: Any = None,  # noqa: ANN401 - transformers has no type for it
) -> torch.Tensor:
    """An encoder-decoder model's logits at every place of ``labels``, shape ``(B, S, V)``."""
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
    if encoded is not None:
        inputs = {"encoder_outputs": encoded}
    logits: torch.Tensor = model(
        **inputs,
        attention_mask=batch["attention_mask"],
        decoder_input_ids=_shifted(model, batch["labels"]),
        use_cache=False,
    ).logits
    return logits


def _shifted(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """What the decoder reads: its start token, then every token but the last, shape ``(B, S)``."""
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start_token(model)
    # causal: what stands in the padding, on the right, is never looked at
    return shifted.masked_fill(shifted == IGNORE_LABEL, 0)


def start_token(model: PreTrainedModel) -> int:
    """The token that every summary of an encoder-decoder model begins behind.

    Raises:
        SmolbenchError: If the model's configuration does not say.
    """
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (token := getattr(config, name, None)) is not None:
                return int(token)
    raise SmolbenchError(
        f"{model.config.name_or_path} does not say what its decoder starts with: set "
        "decoder_start_token_id in its config.json."
    )


# -- texts ----------------------------------------------------------------------------------------


def encoder_output(model: PreTrainedModel, batch: Batch) -> Any:  # noqa: ANN401 - see above
    """What the encoder makes of a batch, for its losses and its summaries; ``None`` without one."""
    if not model.config.is_encoder_decoder:
        return None
    encoder: Any = model.get_encoder()
    return encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def generate_ids(
    model: PreTrainedModel,
    batch: Batch,
    decoding: Decoding,
    ends: frozenset[int],
    encoded: Any = None,  # noqa: ANN401 - see above
) -> torch.Tensor:
    """Write a summary of every document, as ``model.generate`` does one by one.

    What the model's own generation settings say beside (a language's token in front, say) holds.

    Args:
        model: From :func:`load_summarizer`, in evaluation mode.
        batch: Right-padded rows; see :func:`target_losses`. Without ``labels`` a causal model's
            rows are prompts.
        decoding: How.
        ends: Tokens that end a summary.
        encoded: The encoder's output, where it is known.

    Returns:
        Tokens with the end token, int64, shape ``(B, max_new_tokens)``, -1 behind the end.
    """
    config = _generation_config(model, decoding, ends)
    if not model.config.is_encoder_decoder and not ways_of(model).together:
        lengths = left_padded(batch, 0)["attention_mask"].sum(dim=1)
        known: list[int] = sorted(set(lengths.tolist()))
        if len(known) > 1:
            alike = [(lengths == length).nonzero().flatten() for length in known]
            parts = [
                generate_ids(
                    model, {name: column[rows] for name, column in batch.items()}, decoding, ends
                )
                for rows in alike
            ]
            return torch.cat(parts)[torch.cat(alike).argsort()]
    if model.config.is_encoder_decoder:
        if encoded is None:
            encoded = encoder_output(model, batch)
        mask = batch["attention_mask"]
        options: dict[str, Any] = {"encoder_outputs": encoded, "attention_mask": mask}
        if decoding.num_beams > 1 and ways_of(model).beams:
            shared = _shared_by_beams(model, encoded, mask, decoding.num_beams)
            options[cache_argument(model)] = shared
        begin = 1
    else:
        options = left_padded(batch, min(ends))
        begin = options["input_ids"].shape[1]
    generated: Any = model.generate(generation_config=config, **options)  # type: ignore[operator]
    return _until_end(generated[:, begin:], decoding.max_new_tokens, ends)


def _generation_config(
    model: PreTrainedModel, decoding: Decoding, ends: frozenset[int]
) -> GenerationConfig:
    from transformers import GenerationConfig  # lazy: import cost

    own = model.generation_config
    start = {}
    if model.config.is_encoder_decoder:
        start = {"decoder_start_token_id": start_token(model)}
    padding = own.pad_token_id
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=decoding.max_new_tokens,
        min_length=0,
        num_beams=decoding.num_beams,
        do_sample=False,
        **_ONE_SEARCH,
        use_cache=True,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends) if padding is None else padding,
        **start,
    )


_ONE_SEARCH = {
    "num_return_sequences": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
}
"""Beams of one group, and one text of them, whatever the model's own settings say."""
_NOT_OF_THE_MODEL = frozenset(
    {*_ONE_SEARCH}
    | {"max_new_tokens", "num_beams", "max_length", "min_length", "do_sample", "use_cache"}
    | {"eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"}
    | {"transformers_version", "return_dict_in_generate"}
    | {"output_attentions", "output_hidden_states", "output_scores", "output_logits"}
)
"""What is always said here, or decides about no text."""
_OF_SAMPLING = frozenset(
    {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"}
    | {"epsilon_cutoff", "eta_cutoff"}
)
_OF_BEAMS = frozenset({"length_penalty", "early_stopping"})


def own_settings(
    model: PreTrainedModel, decoding: Decoding, ends: frozenset[int]
) -> dict[str, Any]:
    """What the model's own generation settings add to a decoding, by transformers' names.

    Those of its ``generation_config.json`` that are not transformers' defaults and that decide
    about texts written in this way, such as ``length_penalty`` (only with beams) or
    ``no_repeat_ngram_size``.

    Args:
        model: From :func:`load_summarizer`.
        decoding: How.
        ends: Tokens that end a summary.
    """
    from transformers import GenerationConfig  # lazy: import cost

    config = _with_own_settings(model, decoding, ends)
    usual = {**GenerationConfig().to_dict(), **GenerationConfig._get_default_generation_params()}  # type: ignore[no-untyped-call]
    unread = _NOT_OF_THE_MODEL | _OF_SAMPLING
    if decoding.num_beams == 1:
        unread |= _OF_BEAMS
    return {
        name: value
        for name, value in config.to_dict().items()
        if not name.startswith("_")
        and name not in unread
        and value is not None
        and value != usual.get(name)
    }


def whole_generation_config(
    model: PreTrainedModel, decoding: Decoding, ends: frozenset[int]
) -> GenerationConfig:
    """All that decides about texts written in this way, to be saved beside the model.

    Args:
        model: From :func:`load_summarizer`.
        decoding: How.
        ends: Tokens that end a summary.
    """
    config = _with_own_settings(model, decoding, ends)
    config.max_length = None  # of the model's own; max_new_tokens decides
    for name in _OF_SAMPLING | (_OF_BEAMS if decoding.num_beams == 1 else set()):
        if hasattr(config, name):
            setattr(config, name, None)
    return config


def _with_own_settings(
    model: PreTrainedModel, decoding: Decoding, ends: frozenset[int]
) -> GenerationConfig:
    """As ``generate`` does: what is not said here is the model's own, and then transformers'."""
    config = _generation_config(model, decoding, ends)
    config.update(  # type: ignore[no-untyped-call]
        **model.generation_config.to_dict(), defaults_only=True
    )
    return config


def ended_by_itself(
    model: PreTrainedModel, batch: Batch, ids: torch.Tensor, ends: frozenset[int]
) -> torch.Tensor:
    """Whether each summary has come to its end, and was not cut off, shape ``(B,)``.

    Some models' settings (``forced_eos_token_id``, BART's) put an end at the last place allowed
    whatever stands before it. Where an end stands there, it counts if it is also what the model
    itself finds likeliest.

    Args:
        model: From :func:`load_summarizer`, in evaluation mode.
        batch: What was summarized.
        ids: From :func:`generate_ids`, shape ``(B, T)``.
        ends: Tokens that end a summary.
    """
    all_ends = torch.tensor(sorted(ends), device=ids.device)
    ended = torch.isin(ids, all_ends).any(dim=1)
    forced = model.generation_config.forced_eos_token_id is not None
    full = (ended & (ids[:, -1] != NO_TOKEN)).nonzero().flatten()
    if not forced or not len(full):
        return ended
    if not model.config.is_encoder_decoder:
        ended[full] = False  # no causal model is known that has such a setting
        return ended
    read = {name: batch[name][full] for name in ("input_ids", "attention_mask")}
    logits = _decoder_logits(model, {**read, "labels": ids[full]})
    ended[full] = torch.isin(logits[:, -1].argmax(dim=1), all_ends)
    return ended


def _shared_by_beams(
    model: PreTrainedModel,
    encoded: Any,  # noqa: ANN401 - see above
    mask: torch.Tensor,
    beams: int,
) -> EncoderDecoderCache:
    """Keys and values of the documents, computed once for all beams of each.

    ``generate`` would compute them for every beam, and copy them at every step to follow the beams
    that go on; but all beams of a document read the same ones.
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache  # lazy: import cost

    class SharedByBeams(EncoderDecoderCache):
        """Of the beams that go on only what they have written themselves is followed."""

        def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
            self.self_attention_cache.reorder_cache(beam_idx)

    own = model.config.get_text_config(decoder=True)
    filled = EncoderDecoderCache(DynamicCache(config=own), DynamicCache(config=own))
    first = torch.full((len(mask), 1), start_token(model), device=mask.device)
    model(
        encoder_outputs=encoded,
        attention_mask=mask,
        decoder_input_ids=first,
        use_cache=True,
        **{cache_argument(model): filled},
    )
    documents = filled.cross_attention_cache
    documents.batch_repeat_interleave(beams)
    return SharedByBeams(DynamicCache(config=own), documents)


def left_padded(batch: Batch, padding: int) -> dict[str, torch.Tensor]:
    """The prompts of right-padded rows, on the right end: what is written goes on behind them.

    Args:
        batch: ``input_ids`` and ``attention_mask`` ``(B, T)``; with ``labels`` ``(B, T)`` the
            prompts end where those begin.
        padding: Fills what is in front of short prompts.

    Returns:
        ``input_ids`` and ``attention_mask``, shape ``(B, P)``.
    """
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(dim=1)
    if "labels" in batch:
        lengths = lengths - (batch["labels"] != IGNORE_LABEL).sum(dim=1)
    width = int(lengths.max())
    places = torch.arange(width, device=ids.device) - (width - lengths)[:, None]
    mask = places >= 0
    moved = ids.gather(1, places.clamp(min=0)).masked_fill(~mask, padding)
    return {"input_ids": moved, "attention_mask": mask.long()}


def _until_end(ids: torch.Tensor, width: int, ends: frozenset[int]) -> torch.Tensor:
    """Tokens up to each row's end token, and -1 behind it, shape ``(B, width)``."""
    ids = F.pad(ids, (0, width - ids.shape[1]), value=min(ends))
    is_end = torch.isin(ids, torch.tensor(sorted(ends), device=ids.device))
    behind = is_end.cumsum(dim=1) - is_end.long() > 0
    return ids.masked_fill(behind, NO_TOKEN)
