"""Shapes of the tiny models and their random weights, in the names of LLaVA's checkpoints."""
import math

import torch


def llm_shape(**more):
    c = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4,
         "num_key_value_heads": 4, "head_dim": 16, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
         "rope": {"rope_type": "default", "rope_theta": 10000.0}}
    c.update(more)
    return c


def clip_shape(size, hidden=32, heads=4):
    return {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 3,
            "num_attention_heads": heads,
            "image_size": size, "patch_size": 14}


class Random:
    def __init__(self, seed, dtype):
        self.g, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape, std=1.0, mean=0.0):
        return (mean + std * torch.randn(*shape, generator=self.g)).to(self.dtype)

    def linear(self, out, inp, gain=1.0):
        return self.normal(out, inp, std=gain / math.sqrt(inp))


def llm_weights(c, r):
    """LLaVA's names.  Gains keep attention far from uniform and the logits apart."""
    h, m, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    w = {"model.embed_tokens.weight": r.normal(c["vocab_size"], h)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        w[p + "self_attn.q_proj.weight"] = r.linear(q, h, 1.5)
        w[p + "self_attn.k_proj.weight"] = r.linear(kv, h, 1.5)
        w[p + "self_attn.v_proj.weight"] = r.linear(kv, h)
        w[p + "self_attn.o_proj.weight"] = r.linear(h, q)
        w[p + "mlp.gate_proj.weight"] = r.linear(m, h)
        w[p + "mlp.up_proj.weight"] = r.linear(m, h)
        w[p + "mlp.down_proj.weight"] = r.linear(h, m)
        w[p + "input_layernorm.weight"] = r.normal(h, std=0.1, mean=1.0)
        w[p + "post_attention_layernorm.weight"] = r.normal(h, std=0.1, mean=1.0)
    w["model.norm.weight"] = r.normal(h, std=0.1, mean=1.0)
    if not c.get("tie_word_embeddings"):
        w["lm_head.weight"] = r.linear(c["vocab_size"], h, 3.0)
    return w


def projector_weights(kind, inp, h, r):
    p = "model.mm_projector."
    if kind == "linear":
        return {p + "weight": r.linear(h, inp), p + "bias": r.normal(h, std=0.1)}
    return {p + "0.weight": r.linear(h, inp), p + "0.bias": r.normal(h, std=0.1),
            p + "2.weight": r.linear(h, h, 1.5), p + "2.bias": r.normal(h, std=0.1)}


def llava_weights(c, v, r):
    """a language model and an mlp2x_gelu projector from a tower of shape v"""
    w = llm_weights(c, r)
    return {**w, **projector_weights("mlp2x_gelu", v["hidden_size"], c["hidden_size"], r)}


def clip_weights(c, r):
    h, m, n = c["hidden_size"], c["intermediate_size"], (c["image_size"] // c["patch_size"]) ** 2
    p = "vision_model."
    w = {p + "embeddings.class_embedding": r.normal(h),
         p + "embeddings.patch_embedding.weight": r.normal(h, 3, c["patch_size"], c["patch_size"],
                                                           std=1 / 16),
         p + "embeddings.position_embedding.weight": r.normal(n + 1, h, std=0.5)}
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(c["num_hidden_layers"]):
        q = f"encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            w[f"{p}{q}self_attn.{name}.weight"] = r.linear(h, h, 1.5 if name in ("q_proj", "k_proj") else 1.0)
            w[f"{p}{q}self_attn.{name}.bias"] = r.normal(h, std=0.1)
        w[p + q + "mlp.fc1.weight"], w[p + q + "mlp.fc1.bias"] = r.linear(m, h), r.normal(m, std=0.1)
        w[p + q + "mlp.fc2.weight"], w[p + q + "mlp.fc2.bias"] = r.linear(h, m), r.normal(h, std=0.1)
        norms += [q + "layer_norm1", q + "layer_norm2"]
    for name in norms:
        w[p + name + ".weight"], w[p + name + ".bias"] = r.normal(h, std=0.1, mean=1.0), r.normal(h, std=0.1)
    return w
