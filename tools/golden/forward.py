"""The forward pass twice: plain, and through transformers; and what lies between pictures and embeddings."""
import math

import torch
import torch.nn.functional as F

from golden.common import IMAGE


class Plain:
    """The forward pass in the fewest lines, fp32 only: the second opinion on transformers' numbers."""

    def __init__(self, llm, w, clip=None, cw=None):
        self.c, self.v = llm, clip
        self.w = {k: t.float() for k, t in w.items()}
        self.cw = {k[len("vision_model."):]: t.float() for k, t in (cw or {}).items()}

    def attend(self, q, k, v, heads, kv_heads, d, causal):
        t = q.shape[0]
        q, k, v = (x.view(t, -1, d).transpose(0, 1) for x in (q, k, v))
        if causal:
            q, k = self.rotate(q, d), self.rotate(k, d)
        k, v = k.repeat_interleave(heads // kv_heads, 0), v.repeat_interleave(heads // kv_heads, 0)
        s = q @ k.transpose(1, 2) / math.sqrt(d)
        if causal:
            s = s.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf)
        return (s.softmax(-1) @ v).transpose(0, 1).reshape(t, heads * d)

    def frequencies(self, d):
        rope = self.c["rope"]
        f = rope["rope_theta"] ** -(torch.arange(0, d, 2).float() / d)
        if rope["rope_type"] == "linear":
            return f / rope["factor"]
        if rope["rope_type"] == "llama3":
            n = rope["original_max_position_embeddings"] * f / (2 * math.pi)   # turns in the old context
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            s = ((n - low) / (high - low)).clamp(0, 1)
            return (1 - s) * f / rope["factor"] + s * f
        return f

    def rotate(self, x, d):
        a = torch.outer(torch.arange(x.shape[1]).float(), self.frequencies(d)).repeat(1, 2)
        half = torch.cat((-x[..., d // 2:], x[..., :d // 2]), -1)
        return x * a.cos() + half * a.sin()

    def embed(self, ids):
        return self.w["model.embed_tokens.weight"][torch.tensor(ids, dtype=torch.long)]

    def norm(self, x, name):
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return x * scale * self.w[name + ".weight"]

    def logits(self, x):
        c, d = self.c, self.c["head_dim"]
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        for i in range(c["num_hidden_layers"]):
            m = lambda y, name: y @ self.w[f"model.layers.{i}.{name}.weight"].T
            y = self.norm(x, f"model.layers.{i}.input_layernorm")
            q, k, v = (m(y, f"self_attn.{n}_proj") for n in "qkv")
            x = x + m(self.attend(q, k, v, heads, kv_heads, d, True), "self_attn.o_proj")
            y = self.norm(x, f"model.layers.{i}.post_attention_layernorm")
            x = x + m(F.silu(m(y, "mlp.gate_proj")) * m(y, "mlp.up_proj"), "mlp.down_proj")
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return self.norm(x, "model.norm") @ head.T

    def tower(self, pixels):
        """[3,s,s] to [patches, hidden]: the output of the last layer but one, without CLS"""
        v, w = self.v, self.cw
        h, heads = v["hidden_size"], v["num_attention_heads"]
        ln = lambda x, n: F.layer_norm(x, (h,), w[n + ".weight"], w[n + ".bias"], 1e-5)
        fc = lambda x, n: x @ w[n + ".weight"].T + w[n + ".bias"]
        x = F.conv2d(pixels[None], w["embeddings.patch_embedding.weight"], stride=v["patch_size"])
        x = x[0].flatten(1).T
        x = torch.cat((w["embeddings.class_embedding"][None], x)) + w["embeddings.position_embedding.weight"]
        x = ln(x, "pre_layrnorm")
        for i in range(v["num_hidden_layers"] - 1):
            p = f"encoder.layers.{i}."
            y = ln(x, p + "layer_norm1")
            q, k, u = (fc(y, f"{p}self_attn.{n}_proj") for n in "qkv")
            x = x + fc(self.attend(q, k, u, heads, heads, h // heads, False), p + "self_attn.out_proj")
            y = fc(ln(x, p + "layer_norm2"), p + "mlp.fc1")
            x = x + fc(y * torch.sigmoid(1.702 * y), p + "mlp.fc2")
        return x[1:]

    def features(self, pixels):
        return torch.stack([project(self.w, self.tower(p)) for p in pixels.float()])


def project(w, x):
    p = "model.mm_projector."
    if p + "weight" in w:
        return F.linear(x, w[p + "weight"], w[p + "bias"])
    x = F.gelu(F.linear(x, w[p + "0.weight"], w[p + "0.bias"]))
    return F.linear(x, w[p + "2.weight"], w[p + "2.bias"])


class Transformers:
    """The same interface over LlamaForCausalLM (or Mistral) and CLIPVisionModel."""

    def __init__(self, llm, w, clip=None, cw=None, dtype=torch.float32):
        import transformers as tf
        self.dtype = dtype
        kind = tf.MistralForCausalLM if llm.get("mistral") else tf.LlamaForCausalLM
        self.lm = kind(llm_config(llm)).eval()
        tied = {"lm_head.weight": w["model.embed_tokens.weight"]} if llm.get("tie_word_embeddings") else {}
        state = {k: t.float() for k, t in {**w, **tied}.items() if "mm_projector" not in k}
        state.pop("model.image_newline", None)
        self.lm.load_state_dict(state, strict=True)
        assert self.lm.config._attn_implementation == "eager"
        cast(self.lm, dtype)
        self.w = {k: t.to(dtype) for k, t in w.items()}
        self.vision = None
        if clip:
            self.vision = tf.CLIPVisionModel(clip_config(clip)).eval()
            load_clip(self.vision, cw)
            cast(self.vision, dtype)

    def embed(self, ids):
        return self.w["model.embed_tokens.weight"][torch.tensor(ids, dtype=torch.long)]

    def logits(self, x):
        return self.lm(inputs_embeds=x[None].to(self.dtype), use_cache=False).logits[0].float()

    def features(self, pixels):
        states = self.vision(pixel_values=pixels.to(self.dtype), output_hidden_states=True).hidden_states
        return project(self.w, states[-2][:, 1:])


def cast(model, dtype):
    """parameters only: rotary frequencies stay fp32, as after from_pretrained(dtype=...)"""
    for p in model.parameters():
        p.data = p.data.to(dtype)


def llm_config(c):
    import transformers as tf
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings",
            "tie_word_embeddings")
    kind = tf.MistralConfig if c.get("mistral") else tf.LlamaConfig
    more = {"sliding_window": None} if c.get("mistral") else {}
    config = kind(**{k: c[k] for k in keys if k in c}, rope_parameters=dict(c["rope"]), **more)
    config._attn_implementation = "eager"
    return config


def clip_config(c):
    import transformers as tf
    config = tf.CLIPVisionConfig(hidden_act="quick_gelu", layer_norm_eps=1e-5, **c)
    config._attn_implementation = "eager"
    return config


def load_clip(model, weights):
    """newer transformers has no `vision_model.` in front"""
    own = model.state_dict()
    cut = 0 if any(k.startswith("vision_model.") for k in own) else len("vision_model.")
    state = {k[cut:]: t.float() for k, t in weights.items()}
    state.update({k: t for k, t in own.items() if k.endswith("position_ids")})
    model.load_state_dict(state, strict=True)


def spatial_merge(features, grid, size, newline, merge):
    """LLaVA 1.6: tile 0, then the grid of tiles as one picture, cut to what is not padding, a newline after
    each row.  features [tiles, side*side, D]; grid (columns, rows); size (width, height) of the picture."""
    if merge == "flat":
        return features.flatten(0, 1)
    side = math.isqrt(features.shape[1])
    gw, gh = grid
    x = features[1:].view(gh, gw, side, side, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    ow, oh = size
    ch, cw = x.shape[1:]
    if ow / oh > cw / ch:
        cut = (ch - int(oh * (cw / ow))) // 2
        x = x[:, cut:ch - cut, :]
    else:
        cut = (cw - int(ow * (ch / oh))) // 2
        x = x[:, :, cut:cw - cut]
    x = torch.cat((x, newline[:, None, None].expand(-1, x.shape[1], 1).to(x.dtype)), dim=-1)
    return torch.cat((features[0], x.flatten(1, 2).T))


def splice(engine, ids, features):
    """text rows by id, the rows of picture k in place of the k-th -200"""
    rows, k, run = [], 0, []
    for i in ids + [None]:
        if i is not None and i != IMAGE:
            run.append(i)
            continue
        if run:
            rows.append(engine.embed(run))
        if i == IMAGE:
            rows.append(features[k])
            k += 1
        run = []
    return torch.cat(rows)
