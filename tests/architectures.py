"""Parameters of small models, by what packing makes of them."""

from __future__ import annotations

from typing import Any

import virnucpro.model.attention  # noqa: F401  (registers packed_sdpa)

GROUPED: dict[str, Any] = {"num_key_value_heads": 2}


MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}


EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}


LINEAR = ["linear_attention", "full_attention", "linear_attention"]


SUPPORTED: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 32},
    "bert": {},
    "electra": {"embedding_size": 32},
    "esmc": {},
    "eurobert": GROUPED,
    "gemma": {**GROUPED, "head_dim": 8},
    "gpt2": {},
    "gpt_neox": {},
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "mixtral": {**GROUPED, "num_local_experts": 2, "sliding_window": None},
    "modernbert": {"global_attn_every_n_layers": 1, "cls_token_id": 0, "sep_token_id": 2},
    "nomic_bert": {},
    "olmo2": GROUPED,
    "phi3": {**GROUPED, "sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "roberta": {"max_position_embeddings": 40},
    "xlm-roberta": {},
}


STATEFUL: dict[str, dict[str, Any]] = {
    "bamba": {**GROUPED, **MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**GROUPED, **MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **GROUPED,
        **MAMBA,
        "layer_types": LINEAR,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
    "jamba": {
        **GROUPED,
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {
        **GROUPED,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_multiple_of": 8,
    },
    "minimax": {
        **GROUPED,
        "layer_types": LINEAR,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "block_size": 16,
        "head_dim": 8,
    },
    "nemotron_h": {
        **GROUPED,
        "head_dim": 8,
        "hybrid_override_pattern": "M*-",
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
        "use_mamba_kernels": False,
    },
    "qwen3_next": {
        **GROUPED,
        **EXPERTS,
        "head_dim": 8,
        "layer_types": LINEAR,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "recurrent_gemma": {
        "num_key_value_heads": 1,
        "lru_width": 32,
        "attention_window_size": 64,
        "block_types": ("recurrent", "recurrent", "attention"),
    },
    "zamba2": {
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 8,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "chunk_size": 16,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "use_mamba_kernels": False,
    },
}


WINDOWED: dict[str, dict[str, Any]] = {
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "llama4_text": {
        **GROUPED,
        "head_dim": 8,
        "attention_chunk_size": 8,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
    "mistral": {**GROUPED, "sliding_window": 4},
    "modernbert": {
        "global_attn_every_n_layers": 3,
        "local_attention": 8,
        "cls_token_id": 0,
        "sep_token_id": 2,
    },
}


# Their attention is their own, whatever they are set to.
UNAWARE: dict[str, dict[str, Any]] = {
    "bloom": {"n_head": 4, "n_layer": 3},
    "deberta-v2": {},
    "falcon": {},
    "gpt_neo": {
        "attention_types": [[["global", "local", "local"], 1]],
        "num_heads": 4,
        "window_size": 4,
    },
}
