"""Tiny random models of many architectures, as Hugging Face folders; no network."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

TEXTS = [
    "A warm, funny film; I would see it again and again.",
    "Dull.",
    "The plot is thin, the acting wooden, and the ending comes two hours too late for anyone.",
    "Not bad at all!",
    "What a waste of a good cast and of my evening.",
    "I laughed, I cried, I bought the book afterwards and read it twice in one week.",
    "It was fine",
]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "[MASK]"]
BOS, PAD, EOS = 0, 1, 2
VOCABULARY = 400
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS}
BERT = {
    **SMALL,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA = {**BERT, "num_key_value_heads": 1}
OPT = {
    **SMALL,
    "hidden_size": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 16,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**LLAMA),
    "mistral": lambda: MistralConfig(**LLAMA, sliding_window=24),
    "gpt2": lambda: GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=128),
    "gpt_neo": lambda: GPTNeoConfig(
        **SMALL,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=6,  # smaller than the rows
        max_position_embeddings=128,
    ),
    "opt": lambda: OPTConfig(**OPT),
    # the layout of OPT-350m: norms after the blocks, features narrower than the hidden states
    "opt_350m": lambda: OPTConfig(**{**OPT, "word_embed_proj_dim": 8}, do_layer_norm_before=False),
    "bert": lambda: BertConfig(**BERT),
    "roberta": lambda: RobertaConfig(**BERT),
    "t5": lambda: T5Config(
        **SMALL,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=PAD,
    ),
    "bart": lambda: BartConfig(
        **SMALL,
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=128,
    ),
    "qwen2": lambda: Qwen2Config(**LLAMA),
    "qwen3": lambda: Qwen3Config(**LLAMA, head_dim=8),
    "gpt_neox": lambda: GPTNeoXConfig(**BERT),
    # no keys and values to share
    "mamba": lambda: MambaConfig(**SMALL, hidden_size=16, num_hidden_layers=2, state_size=4),
    # keys and values in one layer only
    "lfm2": lambda: Lfm2Config(**LLAMA, layer_types=["full_attention", "conv"]),
}
"""Architectures; all have two layers."""
CAUSAL = ["llama", "mistral", "gpt2", "gpt_neo", "opt", "opt_350m", "mamba", "lfm2"]
BIDIRECTIONAL = ["bert", "roberta", "t5", "bart"]
SPECIAL_TOKENS: dict[str, tuple[list[int], list[int]]] = {
    "opt": ([EOS], []),
    "opt_350m": ([EOS], []),
    "bert": ([BOS], [EOS]),
    "roberta": ([BOS], [EOS]),
    "t5": ([], [EOS]),
    "bart": ([BOS], [EOS]),
}
"""Ids that the tokenizer puts before and after a row, where it puts any."""


@functools.cache
def tiny_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """A small tokenizer with the special tokens of an architecture: lower-cased WordPiece for bert,
    else byte-level BPE."""
    if architecture == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer
        alphabet = [*"abcdefghijklmnopqrstuvwxyz.,!?:;"]
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [*TEXTS, "zabcdefghijklmnopqrstuvwxyz"],  # every letter, also inside of a word
        trainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIALS,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    head, tail = SPECIAL_TOKENS.get(architecture, ([], []))
    if head or tail:
        row = [*(SPECIALS[i] for i in head), "$A", *(SPECIALS[i] for i in tail)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(row),
            special_tokens=[(SPECIALS[i], i) for i in {*head, *tail}],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@functools.cache
def _root() -> Path:
    # kept until the process ends
    _root.temporary = tempfile.TemporaryDirectory(prefix="tiny-backbones-")
    return Path(_root.temporary.name)


@functools.cache
def tiny_backbone(architecture: str, seed: int = 0) -> str:
    """Folder with a random model (float32) and its tokenizer."""
    return _folder(architecture, seed, AutoModel, f"{architecture}-{seed}")


@functools.cache
def tiny_language_model(architecture: str, seed: int = 0) -> str:
    """The same with a language-model head, and with room for longer rows."""
    return _folder(architecture, seed, AutoModelForCausalLM, f"{architecture}-lm-{seed}")


@functools.cache
def tiny_summarizer(architecture: str, seed: int = 0) -> str:
    """The same with what it takes to write summaries, of an encoder-decoder or a causal model."""
    if architecture not in ("t5", "bart"):
        return tiny_language_model(architecture, seed)
    return _folder(architecture, seed, AutoModelForSeq2SeqLM, f"{architecture}-summarizer-{seed}")


def _folder(architecture: str, seed: int, loader: type, name: str) -> str:
    config = CONFIGS[architecture]()
    if loader is AutoModelForCausalLM and hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = 512
    folder = random_model(name, config, loader, seed)
    tiny_tokenizer(architecture).save_pretrained(folder)
    return folder


def random_model(name: str, config: PreTrainedConfig, loader: type, seed: int = 0) -> str:
    """A new folder with a random model (float32) of a configuration."""
    folder = _root() / name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = loader.from_config(config)
        for parameter in model.parameters():  # the usual small weights hide mistakes
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return str(folder)
