"""Tiny random models of many architectures that transformers has a modelling file for."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenizers import Tokenizer, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from tests.helpers import tiny
from tests.helpers.tiny import BOS, EOS, PAD, SPECIALS, random_model, tiny_tokenizer

Kind = Literal["decoder", "encoder", "pair"]
LOADERS = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModel,
    "pair": AutoModelForSeq2SeqLM,
}
ROWS: dict[str, tuple[list[int], list[int]]] = {
    "none": ([], []),
    "bos": ([BOS], []),
    "eos": ([], [EOS]),
    "both": ([BOS], [EOS]),
}
"""Ids that a tokenizer puts before and after a row."""
# heads that are drawn anew tell texts apart, too
SMALL: dict[str, Any] = {**tiny.SMALL, "initializer_range": 0.5}
BERT = {**SMALL, **tiny.BERT, "max_position_embeddings": 512}
LLAMA = {**BERT, "num_key_value_heads": 1}
HEADS = {**LLAMA, "head_dim": 8}
OPT = {**SMALL, **tiny.OPT, "max_position_embeddings": 512, "init_std": 0.5}
GPT2 = {**SMALL, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512}
PAIR = {
    **SMALL,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 128,
    "decoder_start_token_id": PAD,
    "forced_eos_token_id": None,
}
T5 = {
    **SMALL,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": PAD,
}
MODERN = {**BERT, "cls_token_id": BOS, "sep_token_id": EOS, "local_attention": 16}
GEMMA3 = {**HEADS, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}


@dataclass(frozen=True)
class Architecture:
    """A model of a few thousand weights, and how its tokenizer ends rows.

    Attributes:
        model_type: As transformers names it.
        options: Of its configuration.
        kind: What loads it.
        rows: A key of :data:`ROWS`.
        looks_ahead: Whether a decoder sees the tokens behind a token.
    """

    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    kind: Kind = "decoder"
    rows: str = "none"
    looks_ahead: bool = False


def _encoder(model_type: str, options: dict[str, Any]) -> Architecture:
    return Architecture(model_type, options, "encoder", "both")


ZOO: dict[str, Architecture] = {
    "gpt2": Architecture("gpt2", {**GPT2, "pad_token_id": None}),
    "gpt_neo": Architecture(
        "gpt_neo",
        {
            **SMALL,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,  # shorter than the rows, as all windows here
            "max_position_embeddings": 512,
        },
    ),
    "gpt_neox": Architecture("gpt_neox", {**BERT, "pad_token_id": None}, rows="bos"),
    "opt": Architecture("opt", OPT, rows="bos"),
    "llama": Architecture("llama", LLAMA, rows="bos"),
    "llama_both_ways": Architecture(
        "llama", {**LLAMA, "is_causal": False}, rows="both", looks_ahead=True
    ),
    "mistral": Architecture("mistral", {**LLAMA, "sliding_window": 12}, rows="bos"),
    "qwen2": Architecture("qwen2", {**LLAMA, "pad_token_id": None}),
    "qwen3": Architecture("qwen3", HEADS, rows="eos"),
    "gemma2": Architecture("gemma2", {**HEADS, "sliding_window": 12}, rows="bos"),
    "gemma3_text": Architecture("gemma3_text", GEMMA3, rows="bos"),
    "gemma3_both_ways": Architecture(  # EmbeddingGemma's kind
        "gemma3_text",
        {**GEMMA3, "use_bidirectional_attention": True},
        rows="both",
        looks_ahead=True,
    ),
    "gemma3": Architecture(
        "gemma3",
        {
            "text_config": GEMMA3,
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 5,
            "boi_token_index": 6,
            "eoi_token_index": 7,
        },
        rows="bos",
    ),
    "phi": Architecture("phi", BERT),
    "phi3": Architecture("phi3", LLAMA, rows="bos"),
    "bloom": Architecture("bloom", {**SMALL, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "mpt": Architecture(
        "mpt", {**SMALL, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 512}
    ),
    "falcon": Architecture(
        "falcon", {**SMALL, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ),
    "stablelm": Architecture("stablelm", {**LLAMA, "num_key_value_heads": 2}),
    "olmo2": Architecture("olmo2", LLAMA),
    "smollm3": Architecture("smollm3", LLAMA, rows="both"),
    "granite": Architecture("granite", {**LLAMA, "logits_scaling": 4.0}, rows="bos"),
    "cohere": Architecture("cohere", LLAMA, rows="bos"),
    "qwen2_moe": Architecture(
        "qwen2_moe",
        {
            **LLAMA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "decoder_sparse_step": 1,
        },
    ),
    "mixtral": Architecture("mixtral", {**LLAMA, "num_local_experts": 4}, rows="bos"),
    "mamba": Architecture(
        "mamba", {**SMALL, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    ),
    "falcon_mamba": Architecture(
        "falcon_mamba", {**SMALL, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    ),
    "lfm2": Architecture("lfm2", {**LLAMA, "layer_types": ["conv", "full_attention"]}, rows="bos"),
    "recurrent_gemma": Architecture(
        "recurrent_gemma",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "lru_width": 16,
            "attention_window_size": 12,
        },
        rows="bos",
    ),
    "modernbert_decoder": Architecture(
        "modernbert-decoder", {**MODERN, "global_attn_every_n_layers": 2}, rows="both"
    ),
    "bert": _encoder("bert", BERT),
    "roberta": _encoder("roberta", {**BERT, "max_position_embeddings": 514}),
    "distilbert": _encoder(
        "distilbert",
        {
            "vocab_size": SMALL["vocab_size"],
            "initializer_range": 0.5,
            "pad_token_id": PAD,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 32,
            "max_position_embeddings": 128,
        },
    ),
    "albert": _encoder("albert", {**BERT, "embedding_size": 8}),
    "electra": _encoder("electra", {**BERT, "embedding_size": 8}),
    "deberta_v2": _encoder(
        "deberta-v2",
        {
            **BERT,
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
    ),
    "modernbert": _encoder("modernbert", {**MODERN, "global_attn_every_n_layers": 2}),
    "mpnet": _encoder("mpnet", {**BERT, "max_position_embeddings": 514}),
    # networks that mix neighbours whatever a mask says
    "fnet": _encoder("fnet", BERT),
    "convbert": _encoder("convbert", {**BERT, "embedding_size": 16, "conv_kernel_size": 3}),
    "t5": Architecture("t5", T5, "pair", "eos"),
    "switch_transformers": Architecture(
        "switch_transformers",
        {
            **T5,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_experts": 4,
        },
        "pair",
        "eos",
    ),
    "bart": Architecture("bart", PAIR, "pair", "both"),
    "pegasus": Architecture("pegasus", {**PAIR, "scale_embedding": True}, "pair", "eos"),
}
"""Architectures, each with a modelling file of its own, but for the second llama."""


@functools.cache
def zoo_model(name: str) -> str:
    """Folder with a random model (float32) of :data:`ZOO`, with all its heads, and a tokenizer."""
    made = ZOO[name]
    config = CONFIG_MAPPING[made.model_type](**made.options)
    folder = random_model(f"zoo-{name}", config, LOADERS[made.kind])
    _tokenizer(made.rows).save_pretrained(folder)
    return folder


@functools.cache
def _tokenizer(rows: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(tiny_tokenizer("llama").backend_tokenizer.to_str())
    head, tail = ROWS[rows]
    if head or tail:
        row = [*(SPECIALS[i] for i in head), "$A", *(SPECIALS[i] for i in tail)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(row), special_tokens=[(SPECIALS[i], i) for i in {*head, *tail}]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
