"""Muon: momentum, made orthogonal by Newton-Schulz steps, for the weight matrices; AdamW for everything else.

Keller Jordan's method with Moonshot's scaling (Liu et al. 2025, "Muon is scalable for LLM training"): an update has
the size AdamW's would have, so both share one learning rate. Matrices of one shape go through as one batch.
"""
import torch


def orthogonal(g):
    """Nearest semi-orthogonal matrices to g [n, rows, cols], roughly: singular values end between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(torch.bfloat16) if g.is_cuda else g
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    for _ in range(5):
        s = x @ x.transpose(1, 2)
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.transpose(1, 2) if tall else x).to(g.dtype)


class Muon:
    def __init__(self, matrices, others, lr, decay=0.1, momentum=0.95):
        self.decay, self.momentum, self.groups = decay, momentum, {}
        for p in matrices:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.speed = {s: torch.zeros(len(g), *s, device=g[0].device) for s, g in self.groups.items()}
        fused = {"fused": True} if others[0].is_cuda else {}
        self.adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.97), weight_decay=0.0, **fused)

    @torch.no_grad()
    def step(self, lr):
        for shape, group in self.groups.items():
            g, v = torch.stack([p.grad for p in group]), self.speed[shape]
            v.mul_(self.momentum).add_(g, alpha=1 - self.momentum)
            update = orthogonal(g * (1 - self.momentum) + v * self.momentum) * (0.2 * max(shape) ** 0.5)
            torch._foreach_mul_(group, 1 - lr * self.decay)
            torch._foreach_add_(group, list(update), alpha=-lr)
        for g in self.adam.param_groups:
            g["lr"] = lr
        self.adam.step()
