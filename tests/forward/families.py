"""A tiny config for nearly every model type of mlx-lm, and how completions share a prompt in each.

Missing are deepseek_v41, which mlx-lm itself can't differentiate; muse_spark, which has 816 billion parameters;
prism_hadamard_qwen35, which is packed in 2 bits; and olmo, whose import needs a package that is not here.

As of mlx-lm 0.32.2; line numbers are those of mlx_lm/models/TYPE.py there.
"""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.forward.network import PromptSharing

WINDOW = 8  # of every layer that has one

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "vocab_size": 320,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_conv_bias": True,
    "sliding_window": WINDOW,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
LATENT = {  # multi-head latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 256,
    "type": "yarn",
}
ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
}
QWEN_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": [], "shared_expert_intermediate_size": 32}
LINEAR = {  # gated delta nets
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
GRANITE = {
    "logits_scaling": 4.0,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
}
LFM2 = {
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_ff_dim": 64,
    "block_multiple_of": 16,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
    "full_attn_idxs": [1],
    "use_expert_bias": True,
    "num_dense_layers": 1,
}
GPT = {"n_ctx": 256, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "n_inner": 96}
SLIDING = ["sliding_attention", "full_attention"]
LLAMA4 = {
    "attention_chunk_size": WINDOW,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 64,
    "num_hidden_layers": 4,
    "num_experts_per_tok": 1,
    "rope_scaling": None,
    "use_qk_norm": True,
}

LONGCAT = {
    **LATENT,
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 64,
    "moe_topk": 2,
    "expert_ffn_hidden_size": 32,
    "n_routed_experts": 2,
    "zero_expert_num": 2,
    "num_layers": 2,
    "routed_scaling_factor": 1.0,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
GEMMA4 = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "global_head_dim": 16,
    "vocab_size_per_layer_input": 320,
    "hidden_size_per_layer_input": 16,
    "layer_types": SLIDING * 2,
    "tie_word_embeddings": True,
}
QWEN3_5 = {
    **COMMON,
    **LINEAR,
    "num_experts": 0,
    "model_type": "qwen3_5_text",
    "rope_parameters": {"type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
LLAMA_4_SCALING = {
    "rope_theta": 10000.0,
    "type": "default",
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.1,
}
ROPES = {kind: {"rope_theta": 10000.0, "rope_type": "default"} for kind in SLIDING}

CONFIGS: dict[str, dict[str, Any]] = {
    "Klear": {"mlp_only_layers": [0], "decoder_sparse_step": 1, "n_shared_experts": 1, "num_key_value_heads": 4},
    "afm7": {
        "hidden_dim": 64,
        "num_layers": 4,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
    },
    "afmoe": {"layer_types": SLIDING, "num_dense_layers": 1},
    "apertus": {"mlp_bias": True, "post_norm": True, "qk_norm": True},
    "baichuan_m1": {"sliding_window_layers": [0], "conv_window": 2},
    "bailing_hybrid": {
        **LATENT,
        **ROUTED,
        "num_hidden_layers": 4,
        "layer_group_size": 2,
        "group_norm_size": 1,
        "moe_shared_expert_intermediate_size": 32,
    },
    "bailing_moe": {**ROUTED},
    "bailing_moe_linear": {**ROUTED, "num_key_value_heads": 4, "layer_group_size": 2, "group_norm_size": 1},
    "bailing_moe_v3": {**LATENT, **ROUTED, "layer_group_size": 2, "moe_shared_expert_intermediate_size": 32},
    "bitnet": {},
    "cohere": {},
    "cohere2": {"sliding_window_pattern": 2},
    "dbrx": {
        "d_model": 64,
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000},
        "n_layers": 2,
        "n_heads": 4,
    },
    "deepseek": {},
    "deepseek_v2": {**LATENT, **ROUTED, "rope_scaling": YARN},
    "deepseek_v3": {**LATENT, **ROUTED},
    "deepseek_v32": {**LATENT, **ROUTED, "index_n_heads": 4, "index_head_dim": 16, "index_topk": WINDOW},
    "dots1": {**ROUTED},
    "ernie4_5": {"head_dim": None, "tie_word_embeddings": True},
    "ernie4_5_moe": {"moe_num_experts": 4},
    "exaone": {"num_layers": 2},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LG", "layer_types": SLIDING},
    "exaone_moe": {**ROUTED, "layer_types": SLIDING, "is_moe_layer": [False, True]},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "gear": {"layer_types": SLIDING},
    "gemma": {},
    "gemma2": {},
    "gemma3": {"text_config": {**COMMON, "model_type": "gemma3_text", "sliding_window_pattern": 2}},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {
        "text_config": {
            **COMMON,
            "model_type": "gemma3n",
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 320,
            "rope_local_base_freq": 1.0,
            "final_logit_softcapping": 1.0,
            "layer_types": SLIDING * 2,
            "activation_sparsity_pattern": [0.5] * 4,
            "hidden_size_per_layer_input": 32,
            "altup_num_inputs": 2,
            "altup_coef_clip": 1.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 4,
        }
    },
    "gemma4": {
        "vocab_size": 320,
        "text_config": {**COMMON, **GEMMA4, "model_type": "gemma4_text", "enable_moe_block": True, "top_k_experts": 2},
    },
    "gemma4_text": {**GEMMA4},
    "glm": {},
    "glm4": {"partial_rotary_factor": 0.5},
    "glm4_moe": {**ROUTED, "rope_scaling": None, "use_qk_norm": True, "partial_rotary_factor": 0.5},
    "glm4_moe_lite": {**LATENT, **ROUTED},
    "glm_moe_dsa": {
        **LATENT,
        **ROUTED,
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": WINDOW,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "gpt2": {**GPT},
    "gpt_bigcode": {**GPT},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25},
    "gpt_oss": {"layer_types": SLIDING},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8, "n_positions": 256},
    "granite": {**GRANITE, "intermediate_size": 128},
    "granitemoe": {**GRANITE, "intermediate_size": 128},
    "granitemoehybrid": {
        **GRANITE,
        "shared_intermediate_size": 64,
        "mamba_expand": 1,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": False,
        "layer_types": ["mamba", "attention"],
    },
    "helium": {},
    "hunyuan": {
        "num_hidden_layers": 4,
        "moe_topk": 2,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
        "use_cla": True,
        "cla_share_factor": 2,
    },
    "hunyuan_v1_dense": {"use_qk_norm": True, "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}},
    "internlm2": {},
    "internlm3": {},
    "iquestloopcoder": {"loop_num": 2, "loop_window_size": WINDOW},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
    },
    "kimi_k25": {"text_config": {**COMMON, **LATENT, **ROUTED}},
    "kimi_k3": {
        "text_config": {
            **COMMON,
            **LATENT,
            "linear_attn_config": {
                "num_heads": 4,
                "head_dim": 16,
                "kda_layers": [1],
                "full_attn_layers": [2],
                "short_conv_kernel_size": 4,
            },
            "num_experts_per_token": 2,
            "num_shared_experts": 1,
            "attn_res_block_size": 2,
            "first_k_dense_replace": 1,
        }
    },
    "kimi_linear": {
        **LATENT,
        "linear_attn_config": {"num_heads": 4, "head_dim": 16, "kda_layers": [1], "short_conv_kernel_size": 4},
        "model_max_length": 1024,
    },
    "kimi_vl": {"text_config": {**COMMON, **LATENT, **ROUTED}},
    "laguna": {"layer_types": SLIDING, "shared_expert_intermediate_size": 32, "rope_parameters": ROPES},
    "lfm2": {**LFM2},
    "lfm2-vl": {"text_config": {**COMMON, **LFM2, "model_type": "lfm2"}},
    "lfm2_moe": {**LFM2},
    "lille-130m": {"block_size": 256, "n_layer": 2, "n_head": 4, "n_kv_heads": 2, "n_embd": 64},
    "llama": {"layer_types": SLIDING},
    "llama4": {"text_config": {**COMMON, **LLAMA4, "model_type": "llama4"}},
    "llama4_text": {"intermediate_size_mlp": 64, "no_rope_layers": [0, 1], "use_qk_norm": True},
    "longcat_flash": {**LONGCAT},
    "longcat_flash_ngram": {**LONGCAT, "ngram_vocab_size_ratio": 2, "emb_neighbor_num": 2, "emb_split_num": 2},
    "mamba": {"conv_kernel": 4, "state_size": 8, "time_step_rank": 4},
    "mamba2": {
        "num_heads": 8,
        "state_size": 16,
        "conv_kernel": 3,
        "n_groups": 2,
        "chunk_size": 32,
        "tie_word_embeddings": True,
        "time_step_limit": (0.01, 10.0),
        "time_step_rank": "auto",
    },
    "mellum": {"layer_types": SLIDING, "rope_parameters": ROPES},
    "mimo": {},
    "mimo_v2_flash": {
        **ROUTED,
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": WINDOW,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 1000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "v_head_dim": 8,
        "swa_head_dim": 16,
        "swa_v_head_dim": 8,
        "partial_rotary_factor": 0.5,
    },
    "minicpm": {"dim_model_base": 64, "scale_depth": 1.0, "scale_emb": 1.0},
    "minicpm3": {
        **LATENT,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [1.1] * 4,
            "original_max_position_embeddings": 256,
        },
        "dim_model_base": 64,
        "scale_depth": 1.0,
        "scale_emb": 1.0,
    },
    "minimax": {"shared_intermediate_size": 64, "rotary_dim": 16},
    "minimax_m3_vl": {
        "text_config": {
            **COMMON,
            "dense_intermediate_size": 96,
            "shared_intermediate_size": 32,
            "mlp_layer_types": ["dense", "sparse"],
        }
    },
    "ministral3": {"layer_types": SLIDING, "rope_parameters": LLAMA_4_SCALING},
    "mistral3": {"text_config": {**COMMON, "model_type": "llama"}},
    "mistral4": {**LATENT, **ROUTED, "head_dim": None, "rope_parameters": LLAMA_4_SCALING},
    "mixtral": {},
    "muse_glimmer": {"layer_types": SLIDING},
    "nanbeige": {"num_loops": 2},
    "nanochat": {},
    "nemotron": {"hidden_act": "gelu"},
    "nemotron-nas": {
        "block_configs": [
            {
                "attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False},
                "ffn": {"ffn_mult": 1.3125, "no_op": False, "replace_with_linear": False},
            },
        ]
        * 2,
    },
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "conv_kernel": 3,
        "n_groups": 2,
        "time_step_limit": [1.0, 2.0],
        "residual_in_fp32": True,
        "hybrid_override_pattern": ["*", "M"],
    },
    "olmo2": {},
    "olmo3": {"layer_types": SLIDING},
    "olmo_hybrid": {**LINEAR, "linear_allow_neg_eigval": True, "layer_types": ["linear_attention", "full_attention"]},
    "olmoe": {},
    "openelm": {
        "ffn_dim_divisor": 16,
        "ffn_multipliers": [1.0, 2.0],
        "model_dim": 64,
        "normalize_qk_projections": True,
        "num_kv_heads": [2, 2],
        "num_query_heads": [4, 4],
        "num_transformer_layers": 2,
    },
    "phi": {},
    "phi3": {"rope_scaling": None},
    "phi3small": {
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 96,
        "gegelu_limit": 1.0,
        "vocab_size": 100352,  # it writes into the logits of tokens of its own
    },
    "phimoe": {
        "rope_scaling": {
            "long_factor": [1.0] * 8,
            "long_mscale": 1.2,
            "original_max_position_embeddings": 4096,
            "short_factor": [1.0] * 8,
            "short_mscale": 1.2,
            "type": "longrope",
        },
    },
    "phixtral": {"num_vocab": 320, "model_dim": 64, "num_heads": 4, "num_layers": 2, "rotary_dim": 8},
    "pixtral": {"text_config": {**COMMON, "model_type": "llama"}},
    "plamo": {"n_shared_head": 2},
    "plamo2": {
        "hidden_size_per_head": 16,
        "attention_window_size": WINDOW,
        "mamba_d_state": 16,
        "mamba_num_heads": 4,
    },
    "plamo3": {"window_size": WINDOW, "sliding_window_pattern": 2},
    "qwen": {"kv_channels": 16},
    "qwen2": {},
    "qwen2_moe": {**QWEN_MOE},
    "qwen2_vl": {"text_config": {**COMMON, "model_type": "qwen2"}},
    "qwen3": {},
    "qwen3_5": {"text_config": {**QWEN3_5}},
    "qwen3_5_moe": {"text_config": {**QWEN3_5, **QWEN_MOE, "num_experts": 4, "model_type": "qwen3_5_moe_text"}},
    "qwen3_moe": {**QWEN_MOE},
    "qwen3_next": {**LINEAR, **QWEN_MOE, "partial_rotary_factor": 0.5},
    "qwen3_vl": {"text_config": {**COMMON, "model_type": "qwen3"}},
    "qwen3_vl_moe": {"text_config": {**COMMON, **QWEN_MOE, "model_type": "qwen3_moe"}},
    "recurrent_gemma": {
        "conv1d_width": 3,
        "logits_soft_cap": 1.0,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv7": {"a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8, "decay_low_rank_dim": 8},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {**ROUTED, "partial_rotary_factor": 0.5},
    "spark2_5": {"layer_types": SLIDING, "rope_parameters": ROPES},
    "stablelm": {"partial_rotary_factor": 0.25, "use_qkv_bias": True},
    "starcoder2": {},
    "step3p5": {
        "num_attention_groups": 2,
        "layer_types": SLIDING,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "share_expert_dim": 32,
        "moe_layers_enum": "1",
    },
    "talkie": {},
    "telechat3": {},
    "youtu_llm": {**LATENT},
}

# All others share whatever the prompts of a micro-batch are.
ONE_PROMPT = {  # and why prompts of unlike length, padded on the left, cannot stand beside each other
    "afm7": "its last layers take the number of keys, padding included, for the position (255)",
    "baichuan_m1": "the convolution over keys and values takes no mask (75)",
    "bailing_moe_linear": "the linear attention takes no mask (313)",
    "gemma2": "the scores have five axes, so a mask for each sequence does not fit them (98)",
    "gpt_bigcode": "positions are a NumPy range from one offset (150)",
    "jamba": "the state-space layers take no mask (278)",
    "llama4": "the mask of a chunk is built from one offset (238)",
    "mamba": "the state-space layers take no mask (120)",
    "mistral4": "queries are scaled by a logarithm of the position, and padding stands at negative ones (336)",
    "ministral3": "queries are scaled by a logarithm of the position, and padding stands at negative ones (47)",
    "olmo_hybrid": "the convolutions take no mask (123)",
    "rwkv7": "the recurrence and the token shift take no mask (382)",
}
PLAIN = {  # and why a prompt run first gives other numbers
    "gemma3n": "its last layers share keys where there is a cache, and have their own where there is none (131)",
    "phi3small": "its block-sparse layers look at what comes after: a mask of booleans is added to the scores (146)",
}
UNTRAINABLE = {  # with LoRA on all layers by mlx-lm itself: what it says, and why
    "bitnet": ("nothing to train", "its linear layers are of a class that LoRA does not know"),
    "gemma3n": ("no attribute 'weight'", "it reads the weight of a layer that LoRA replaces (231)"),
    "kimi_k3": ("no attribute 'weight'", "it reads the weights of layers that LoRA replaces (711, 850)"),
    "recurrent_gemma": ("no attribute '_no_grad'", "its Model does not initialise nn.Module, so it cannot be frozen"),
}
KEYS = {  # with LoRA on these they train
    "gemma3n": ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"),
    "kimi_k3": ("self_attn.qkv_proj", "self_attn.q_b_proj", "self_attn.o_proj", "mlp.down_proj"),
}


def sharing(family: str) -> PromptSharing:
    """How completions share a prompt in a model of this type."""
    if family in PLAIN:
        return PromptSharing.NONE
    return PromptSharing.ONE_PROMPT if family in ONE_PROMPT else PromptSharing.ANY_PROMPTS


def tiny(family: str) -> nn.Module:
    """A random float32 model; nothing is left at the zeros and ones that a layer begins with."""
    module = importlib.import_module(f"mlx_lm.models.{family}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict({**COMMON, **CONFIGS[family], "model_type": family}))
    model.set_dtype(mx.float32)
    noisy = [(name, v + 0.05 * mx.random.normal(v.shape)) for name, v in tree_flatten(model.parameters())]
    model.update(tree_unflatten(noisy))
    return model
