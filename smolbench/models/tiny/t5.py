"""The built-in tiny encoder-decoder model: Flan-T5's architecture at toy size, for demos and tests.

It is built on this machine, from a seed and the built-in dialogues, with no network, and is then an
ordinary model folder. Nothing is trained but the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smolbench.models.tiny.llama import built_once, train_tokenizer
from smolbench.utils.digest import digest, text_digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
"""Ids 0, 1 and 2, as in T5; the decoder starts with the first."""
_RECIPE = {"version": 1, "seed": 0}
"""Raise the version with every change that alters the files."""
_MAX_LENGTH = 512
_EMBEDDING_STD = 1.0
_WEIGHT_STD = 0.1
"""Of all other matrices; T5 does not scale its attention, so they are small."""


def tiny_t5(cache_dir: Path) -> Path:
    """Folder with the tiny encoder-decoder model; built at the first call, within seconds.

    Args:
        cache_dir: Where the folder is made.

    Returns:
        ``cache_dir/tiny-t5-<digest>``, for ``from_pretrained`` of AutoModelForSeq2SeqLM and
        AutoTokenizer.

    Raises:
        SmolbenchError: If the folder cannot be written.
    """
    from smolbench.data.samples.samsum import samsum_sample  # lazy: its package imports lightning

    sample = samsum_sample("train")
    texts = [*sample["dialogue"], *sample["summary"]]
    name = f"tiny-t5-{digest({**_RECIPE, 'texts': text_digest(texts)})}"
    return built_once(cache_dir / name, lambda folder: _build(folder, texts))


def _build(folder: Path, texts: Sequence[str]) -> None:
    """Train the tokenizer, draw the weights and save both."""
    import torch  # lazy: import cost
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    tokenizer = _tokenizer(texts)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # untyped in transformers
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=_MAX_LENGTH,
    ).save_pretrained(folder)
    config = T5Config(  # type: ignore[call-arg] # it takes more than it lists
        vocab_size=tokenizer.get_vocab_size(),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # as in Flan-T5: transformers then scales no outputs
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        dtype="bfloat16",
    )
    generator = torch.Generator().manual_seed(_RECIPE["seed"])
    with torch.random.fork_rng(devices=[]):
        model = T5ForConditionalGeneration(config).bfloat16()
    # transformers ties them in any case, unless two different ones are found in the files
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                std = _EMBEDDING_STD if parameter_name == "shared.weight" else _WEIGHT_STD
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(std * noise)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # encoder and decoder share their embeddings
    weights = {key: value for key, value in model.state_dict().items() if "embed_tokens" not in key}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A vocabulary of the texts; every row ends in the end token."""
    from tokenizers import processors

    tokenizer = train_tokenizer(texts, [PAD, END, UNKNOWN])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer
