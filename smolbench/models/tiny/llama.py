"""The built-in tiny model: SmolLM2's architecture at toy size, for demos and tests.

It is built on this machine, from a seed and the built-in sample, with no network, and is then an
ordinary model folder. Nothing is trained but the tokenizer. The token embeddings come from latent
semantic analysis (Deerwester et al., 1990) of the sample's reviews, so that a probe of the
otherwise random network finds something: with random embeddings it would stay near chance.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smolbench.errors import SmolbenchError
from smolbench.utils.digest import digest, text_digest

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

END = "<|endoftext|>"
"""Begin, end and unknown token in one, id 0, as in SmolLM2; there is no padding token."""

_RECIPE = {"version": 2, "seed": 0}
"""Raise the version with every change that alters the files."""
_MAX_VOCABULARY = 2048
_MAX_POSITIONS = 8192
_COMMON_STD = 2.0
"""Size of the vector that all embeddings share, where their own parts have 1. As in pretrained
models it dominates the norm, so that normalising leaves rare and frequent words their weights."""
_VALUE_STD = 0.1
"""Of the attention's value and output matrices: a token shows what stands before it."""
_WEIGHT_STD = 0.03
"""Of all other matrices: small, so that the layers do not drown the embeddings."""


def tiny_model(cache_dir: Path) -> Path:
    """Folder with the tiny model; built at the first call, within seconds.

    Safe for several processes at once and against a kill: the folder appears complete or not at
    all. The weights are bfloat16, as SmolLM2's are.

    Args:
        cache_dir: Where the folder is made.

    Returns:
        ``cache_dir/tiny-<digest>``, for ``from_pretrained`` of AutoModel, AutoModelForCausalLM and
        AutoTokenizer.

    Raises:
        SmolbenchError: If the folder cannot be written.
    """
    from smolbench.data.samples.imdb import imdb_sample  # lazy: its package imports lightning

    texts = imdb_sample("train")["text"]
    name = f"tiny-{digest({**_RECIPE, 'texts': text_digest(texts)})}"
    return built_once(cache_dir / name, lambda folder: _build(folder, texts))


def built_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """A model folder, built at the first call; see :func:`tiny_model`.

    Args:
        folder: Where it is, or is to be.
        build: Writes the files into an empty place.

    Raises:
        SmolbenchError: If the folder cannot be written.
    """
    if folder.is_dir():
        return folder
    import torch  # lazy: import cost

    cache_dir = folder.parent
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".tiny-") as temporary:
            built = Path(temporary) / "model"
            with torch.device("cpu"):  # a caller may have made another device the default
                build(built)
            _publish(built, folder)
    except OSError as error:
        raise SmolbenchError(
            f"The built-in tiny model cannot be written to {cache_dir} "
            f"({error.strerror or error}); name a folder that can be written to in the "
            "environment variable SMOLBENCH_CACHE."
        ) from error
    return folder


def _publish(built: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was faster."""
    try:
        built.replace(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _build(folder: Path, texts: Sequence[str]) -> None:
    """Train the tokenizer, draw the weights and save both."""
    import torch  # lazy: import cost
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_tokenizer(texts, [END])
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # untyped in transformers
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=_MAX_POSITIONS,
    ).save_pretrained(folder)

    # drawing and decomposing in float64 and rounding to bfloat16 gives the same files on machines
    # whose libraries differ in the last bits
    generator = torch.Generator().manual_seed(_RECIPE["seed"])
    model = _empty_model(tokenizer.get_vocab_size())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                parameter.copy_(_embeddings(tokenizer, texts, parameter.shape[1], generator))
            elif parameter.ndim > 1:
                wide = name.endswith(("v_proj.weight", "o_proj.weight"))
                std = _VALUE_STD if wide else _WEIGHT_STD
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(std * noise)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    # not model.save_pretrained, which shows a progress bar for its one file; the output layer is
    # the embeddings again
    weights = {name: w for name, w in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def train_tokenizer(texts: Sequence[str], specials: Sequence[str]) -> Tokenizer:
    """Byte-level BPE with single digits, as SmolLM2's: any text has a lossless encoding.

    Args:
        texts: What the vocabulary is learned from.
        specials: Special tokens, which get the first ids.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _empty_model(vocabulary: int) -> LlamaForCausalLM:
    """The network, its weights still to be set; leaves the global random generator as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=176,  # about 8/3 of the width, as in SmolLM2
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attention_bias=True,  # SmolLM2 has none; BitFit needs some
        bos_token_id=0,
        eos_token_id=0,
        dtype="bfloat16",
    )
    with torch.random.fork_rng(devices=[]):
        return LlamaForCausalLM(config).bfloat16()


def _embeddings(
    tokenizer: Tokenizer, texts: Sequence[str], width: int, generator: torch.Generator
) -> torch.Tensor:
    """Latent semantic analysis: tokens that occur in the same reviews get similar vectors.

    Returns:
        Float64, shape ``(V, width)``.
    """
    import torch

    counts = torch.zeros(len(texts), tokenizer.get_vocab_size(), dtype=torch.float64)
    for row, encoding in zip(counts, tokenizer.encode_batch(list(texts)), strict=True):
        ids = torch.tensor(encoding.ids)
        row.index_add_(0, ids, torch.ones(len(ids), dtype=torch.float64))
    documents = (counts > 0).sum(0)
    rarity = torch.where(documents > 1, torch.log(len(texts) / documents.clamp(min=1)), 0.0)
    weights = counts.sqrt() * rarity
    weights /= weights.norm(dim=1, keepdim=True)
    weights -= weights.mean(0)
    # the reviews' strongest directions, by randomised subspace iteration (Halko et al., 2011)
    basis = torch.randn(len(texts), width, generator=generator, dtype=torch.float64)
    for _ in range(4):
        basis, _ = torch.linalg.qr(weights @ (weights.T @ basis))
    vectors: torch.Tensor = weights.T @ basis
    vectors -= vectors.mean(0)
    vectors /= vectors.square().mean().sqrt()
    common = torch.randn(width, generator=generator, dtype=torch.float64)
    return vectors + _COMMON_STD * common
