"""A small LLaVA-1.5: CLIP vision tower, two-layer projector, Llama; the same maths as transformers, trained faster.

Parameter names are those that transformers writes, so a state dict goes over as it is. Training packs several
question-and-answer branches behind one picture; every branch sees the head and the picture, never another branch.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

SIDE, PATCH = 112, 8
TOKENS = (SIDE // PATCH) ** 2
WIDTH, VISION_LAYERS, TEXT_LAYERS, HEAD_DIM = 256, 9, 4, 64
VISION_MLP, TEXT_MLP = 1024, 704


def heads(x):
    return x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)


def qkv(block, x):
    """Three projections as one product."""
    parts = (block.q_proj, block.k_proj, block.v_proj)
    bias = torch.cat([p.bias for p in parts]) if parts[0].bias is not None else None
    return [heads(t) for t in F.linear(x, torch.cat([p.weight for p in parts]), bias).chunk(3, -1)]


def attend(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class Box(nn.Module):
    """A named group of modules."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class VisionBlock(nn.Module):
    def __init__(self, d, drop):
        super().__init__()
        self.self_attn = Box(**{n: nn.Linear(d, d) for n in ("q_proj", "k_proj", "v_proj", "out_proj")})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mlp = Box(fc1=nn.Linear(d, VISION_MLP), fc2=nn.Linear(VISION_MLP, d))
        self.drop = drop

    def maybe(self, x):
        """Stochastic depth: leave the branch out for some rows."""
        if not self.training or not self.drop:
            return x
        return x * (torch.rand(len(x), 1, 1, device=x.device) >= self.drop) / (1 - self.drop)

    def forward(self, x):
        x = x + self.maybe(self.self_attn.out_proj(attend(*qkv(self.self_attn, self.layer_norm1(x)))))
        h = self.mlp.fc1(self.layer_norm2(x))
        return x + self.maybe(self.mlp.fc2(h * torch.sigmoid(1.702 * h)))


class Vision(nn.Module):
    def __init__(self, d=WIDTH, drop=0.1):
        super().__init__()
        self.embeddings = Box(patch_embedding=nn.Conv2d(3, d, PATCH, PATCH, bias=False),
                              position_embedding=nn.Embedding(TOKENS + 1, d))
        self.embeddings.class_embedding = nn.Parameter(torch.randn(d) * 0.02)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.encoder = Box(layers=nn.ModuleList(VisionBlock(d, drop * i / (VISION_LAYERS - 2))
                                                for i in range(VISION_LAYERS)))

    def forward(self, pixels, keep=None):
        """[B,3,SIDE,SIDE] -> [B,TOKENS,d], hidden_states[-2] without the class token; keep: use these patches only."""
        e = self.embeddings
        n, g = len(pixels), SIDE // PATCH
        x = pixels.view(n, 3, g, PATCH, g, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(n, TOKENS, -1)
        x = F.linear(x, e.patch_embedding.weight.flatten(1)) + e.position_embedding.weight[1:]
        if keep is not None:
            x = x[:, keep]
        cls = (e.class_embedding + e.position_embedding.weight[0]).to(x.dtype).expand(n, 1, -1)
        x = self.pre_layrnorm(torch.cat([cls, x], 1))
        for layer in self.encoder.layers[:-1]:
            x = layer(x)
        return x[:, 1:]


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        f = x.float()
        return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


class TextBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        lin = lambda i, o: nn.Linear(i, o, bias=False)
        self.self_attn = Box(**{n: lin(d, d) for n in ("q_proj", "k_proj", "v_proj", "o_proj")})
        self.mlp = Box(gate_proj=lin(d, TEXT_MLP), up_proj=lin(d, TEXT_MLP), down_proj=lin(TEXT_MLP, d))
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(d), RMSNorm(d)

    def forward(self, x, cos, sin, mask):
        q, k, v = qkv(self.self_attn, self.input_layernorm(x))
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        x = x + self.self_attn.o_proj(attend(q, k, v, mask))
        h = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(h)) * self.mlp.up_proj(h))


class Llava(nn.Module):
    def __init__(self, vocab, d=WIDTH):
        super().__init__()
        self.vision_tower = Vision(d)
        self.multi_modal_projector = Box(linear_1=nn.Linear(d, d), linear_2=nn.Linear(d, d))
        self.language_model = Box(embed_tokens=nn.Embedding(vocab, d), norm=RMSNorm(d),
                                  layers=nn.ModuleList(TextBlock(d) for _ in range(TEXT_LAYERS)))
        self.lm_head = nn.Linear(d, vocab, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.trunc_normal_(p, std=0.02 if "embed" in name or "lm_head" in name else p[0].numel() ** -0.5 * 0.7)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def project(self, features):
        p = self.multi_modal_projector
        return p.linear_2(F.gelu(p.linear_1(features)))

    def logits(self, features, head, branches, places, mask):
        """Logits at every branch position. features [B,TOKENS,d]; head [B,H]; branches [B,L] ids side by side;
        places [H+TOKENS+L] rotary positions; mask [S,S] additive."""
        t = self.language_model
        x = torch.cat([t.embed_tokens(head), self.project(features).to(t.embed_tokens.weight.dtype),
                       t.embed_tokens(branches)], 1)
        rate = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2, device=x.device).float() / HEAD_DIM)
        angle = (places.float()[:, None] * rate).repeat(1, 2)
        cos, sin = angle.cos(), angle.sin()
        for layer in t.layers:
            x = layer(x, cos, sin, mask)
        return self.lm_head(t.norm(x[:, head.shape[1] + TOKENS:]))


def layout(head, lengths, device):
    """(places, additive mask) for branches of these lengths behind head ids and the picture."""
    prefix = head + TOKENS
    places, owner = list(range(prefix)), [-1] * prefix
    for i, n in enumerate(lengths):
        places += range(prefix, prefix + n)
        owner += [i] * n
    owner = torch.tensor(owner)
    see = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    see &= torch.ones(len(owner), len(owner)).tril().bool()
    mask = torch.zeros(see.shape).masked_fill_(~see, float("-inf"))
    return torch.tensor(places, device=device), mask.to(device)
