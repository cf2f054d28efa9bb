"""Labels, loss and gradients of one training step."""
import os

import torch
import torch.nn.functional as F

from golden.common import IGNORE, IMAGE, notes, opt, relative, write_safetensors
from golden.expected import WIDE
from golden.forward import Plain, Transformers, project, splice
from golden.text import SYSTEM, Tokenizer

HUMAN1, GPT1 = "<image>\nWhat is in the picture?", "Two cups of tea."
HUMAN2, GPT2 = "Is it red?", "Yes, it is."
V1_TEXT = f"{SYSTEM} USER: {HUMAN1} ASSISTANT: {GPT1}</s>USER: {HUMAN2} ASSISTANT: {GPT2}</s>"
PLAIN_TEXT = "<image>a cat on a mat\n"


def v1_labels(tok, text):
    """LLaVA's preprocess_v1: everything masked but the answers and their </s>"""
    ids = tok.encode_image(text)
    labels, at = list(ids), 1
    labels[0] = IGNORE
    for n, part in enumerate(text.split("</s>")):
        if not part:
            break
        halves = part.split(" ASSISTANT: ")
        if len(halves) != 2:
            break
        length = len(tok.encode_image(part))
        asked = len(tok.encode_image(halves[0] + " ASSISTANT: ")) - 2
        if n and not tok.legacy:
            length, asked = length - 1, asked - 1
        labels[at:at + asked] = [IGNORE] * asked
        at += length
    assert at == len(ids), f"tokenization mismatch: {at} vs. {len(ids)}"
    return ids, labels


def plain_labels(tok, text):
    ids = tok.encode_image(text)
    return ids, [IGNORE] * len(tok.encode_image("<image>")) + ids[len(tok.encode_image("<image>")):]


def training(model, spm):
    """ids and labels of one conversation and one caption; loss and gradients of one step on WIDE, fp32"""
    out, grads = {}, {}
    for legacy in (False, True):
        tok, end = Tokenizer(spm, legacy), ".legacy" if legacy else ""
        for name, rule, text in (("v1", v1_labels, V1_TEXT), ("plain", plain_labels, PLAIN_TEXT)):
            ids, labels = rule(tok, text)
            out[f"{name}{end}.input_ids"] = torch.tensor(ids)
            out[f"{name}{end}.labels"] = torch.tensor(labels)
    text_only = V1_TEXT.replace("<image>\n", "")
    ids, labels = v1_labels(Tokenizer(spm, False), text_only)
    out["text.input_ids"], out["text.labels"] = torch.tensor(ids), torch.tensor(labels)
    for name in ("v1", "plain"):
        loss, g = step(model, out[name + ".input_ids"].tolist(), out[name + ".labels"].tolist())
        out[name + ".loss"] = loss.reshape(1)
        grads.update({f"{name}.{k}": t for k, t in g.items() if name == "v1" or "mm_projector" in k})
    write_safetensors(os.path.join(opt.out, "expected", "train.safetensors"), out)
    write_safetensors(os.path.join(opt.out, "expected", "grads.safetensors"), grads)
    notes["training"] = {"model": "models/" + model.name, "picture": WIDE, "v1": V1_TEXT, "plain": PLAIN_TEXT,
                         "text": text_only}


def step(model, ids, labels):
    """loss = mean over supervised tokens; gradients of the language model and the projector, not of CLIP"""
    _, pixels, _ = model.pictures([WIDE])
    w = {k: t.float().clone().requires_grad_(True) for k, t in model.w.items()}
    plain = Plain(model.llm, {})
    plain.w = w
    with torch.no_grad():
        tower = model.plain.tower(pixels[0])
    feature = project(w, tower)
    x = splice(plain, ids, [feature])
    wide = sum(([IGNORE] * len(feature) if i == IMAGE else [y] for i, y in zip(ids, labels)), [])
    target = torch.tensor(wide)[1:]
    loss = F.cross_entropy(plain.logits(x)[:-1], target, ignore_index=IGNORE)
    loss.backward()
    grads = {k: t.grad for k, t in w.items()}
    if not opt.plain:
        check_step(model, ids, wide, tower, loss, grads)
    return loss.detach(), grads


def check_step(model, ids, wide, tower, loss, grads):
    """the same through LlamaForCausalLM's own loss; its numbers are the ones kept"""
    lm = Transformers(model.llm, model.w).lm.train()
    lm.config.use_cache = False
    p = {k: t.float().clone().requires_grad_(True) for k, t in model.w.items() if "mm_projector" in k}

    class View:
        embed = staticmethod(lambda run: lm.get_input_embeddings()(torch.tensor(run)))

    x = splice(View, ids, [project(p, tower)])
    theirs = lm(inputs_embeds=x[None], labels=torch.tensor(wide)[None], use_cache=False).loss
    theirs.backward()
    own = {**{k: t.grad for k, t in lm.named_parameters()}, **{k: t.grad for k, t in p.items()}}
    worst = max(relative(grads[k], own[k]) for k in grads)
    worst = max(worst, abs(float(theirs.detach() - loss.detach())))
    notes["training_plain_vs_transformers"] = max(worst, notes.get("training_plain_vs_transformers", 0))
    assert set(own) == set(grads) and worst < 2e-5, worst
    grads.update(own)
    loss.data.copy_(theirs.data)
