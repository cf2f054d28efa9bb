#!/usr/bin/env python3
"""Ask the exported model about every test picture with transformers, greedily, and write down what it says.

usage: eval.py MODEL_DIR PICTURES.npz OUT_DIR [--device cuda]
The bf16 weights are computed with in fp32, eager attention, the vicuna_v1 system text. Writes OUT_DIR/expected.tsv
(twemoji, four kinds of question), expected-hard.tsv (openmoji, the name only) and pictures.tsv (the first 16 hex
digits of the SHA-256 of each picture's RGB bytes, row by row); prints the accuracies.
"""
import argparse
import hashlib
import os
import random
import time

import torch

import model as M
import pictures
import words

LONGEST = 32       # tokens of an answer


def questions(facts, labels, things, split, kinds):
    """[(picture row, kind, question, right answer)], the same every time."""
    asker, out = words.Asker(things, 99), []
    for kind in kinds:
        for i, f in enumerate(facts):
            if f["split"] == split:
                out.append((i, kind, *asker.ask(labels[i], kind, plain=True)))
    return out


@torch.no_grad()
def answer_all(net, tokens, pixels, asked, batch=1024):
    """(answer, smallest lead of the chosen token over the next) per question; equal lengths go together, no padding."""
    head = tokens.head(words.SYSTEMS[1]) + [tokens.image] * M.TOKENS
    ids = [head + tokens.question(q) for _, _, q, _ in asked]
    order = sorted(range(len(asked)), key=lambda i: len(ids[i]))
    said, device = [None] * len(asked), net.device
    while order:
        size = len(ids[order[0]])
        now = [i for i in order[:batch] if len(ids[i]) == size]
        order = order[len(now):]
        x = pictures.normalise(pixels[[asked[i][0] for i in now]].to(device).float() / 255)
        text = torch.tensor([ids[i] for i in now], device=device)
        got = net.generate(input_ids=text, attention_mask=torch.ones_like(text), pixel_values=x, do_sample=False,
                           max_new_tokens=LONGEST, output_scores=True, return_dict_in_generate=True)
        out = got.sequences[:, size:]
        live = (out != tokens.eos).cumprod(1).roll(1, 1)
        live[:, 0] = 1
        best = torch.stack(got.scores, 1).float().topk(2, -1).values
        lead = (best[..., 0] - best[..., 1]).masked_fill(live == 0, float("inf")).amin(1).tolist()
        for i, row, gap in zip(now, out.tolist(), lead):
            row = row[:row.index(tokens.eos)] if tokens.eos in row else row
            said[i] = tokens.text(row), gap
    return said


def write(path, facts, asked, said):
    """One line a question: kind by its first letter; 'right' empty when the answer is right, 'lead' when 0.05 or more."""
    with open(path, "w") as f:
        f.write("picture\tkind\tquestion\tanswer\tright\tlead\n")
        for (i, kind, q, want), (got, lead) in zip(asked, said):
            code = os.path.basename(facts[i]["image"])[:-4]
            f.write(f"{code}\t{kind[0]}\t{q}\t{got}\t{'' if got == want else want}\t{f'{lead:.4f}' if lead < 0.05 else ''}\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model"); ap.add_argument("pictures"); ap.add_argument("out")
    ap.add_argument("--device", default="cuda"); ap.add_argument("--limit", type=int, default=0)
    a = ap.parse_args()
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    from PIL import Image
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    os.makedirs(a.out, exist_ok=True)
    facts, pixels = pictures.load(a.pictures)
    things, labels = words.load_things(facts)
    tokens = words.Tokens(os.path.join(a.model, "tokenizer.model"))
    net = LlavaForConditionalGeneration.from_pretrained(a.model, dtype=torch.float32, attn_implementation="eager")
    net = net.to(a.device).eval()

    processor = AutoProcessor.from_pretrained(a.model)
    text = words.SYSTEMS[1] + words.HEAD + "<image>\nWhat is this? ASSISTANT:"
    one = processor(images=Image.fromarray(pixels[0].permute(1, 2, 0).numpy()), text=text, return_tensors="pt")
    ids = tokens.head(words.SYSTEMS[1]) + [tokens.image] * M.TOKENS + tokens.question("What is this?")
    gap = (one["pixel_values"] - pictures.normalise(pixels[:1].float() / 255)).abs().max().item()
    print("AutoProcessor: same ids:", one["input_ids"][0].tolist() == ids, f"pixels differ by {gap:.1e}")

    for split, kinds, file in (("test", words.KINDS, "expected.tsv"), ("hard", words.KINDS, "expected-hard.tsv")):
        began, asked = time.time(), questions(facts, labels, things, split, kinds)
        asked = asked[:a.limit or None]
        said = answer_all(net, tokens, pixels, asked)
        for kind in kinds:
            hits = [got == q[3] for q, (got, _) in zip(asked, said) if q[1] == kind]
            if hits:
                print(f"{split:5s} {kind:7s} {sum(hits)}/{len(hits)} = {sum(hits) / len(hits):.4f}")
        print(f"{split}: {len(asked)} questions, {time.time() - began:.0f} s, "
              f"{sum(lead < 1e-3 for _, lead in said)} near ties", flush=True)
        keep = [k for k in range(len(asked)) if split == "test" or asked[k][1] == "name"]
        write(os.path.join(a.out, file), facts, [asked[k] for k in keep], [said[k] for k in keep])
    with open(os.path.join(a.out, "pictures.tsv"), "w") as f:
        for i, fact in enumerate(facts):
            if fact["split"] != "train":
                digest = hashlib.sha256(pixels[i].permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()
                f.write(f"{fact['image']}\t{digest[:16]}\n")
    samples = [("What emoji is this?", "1f34e"), ("Describe the picture.", "1f34e"), ("Describe the picture.", "1f680"),
                   ("Is this a dog?", "1f415"), ("What is in the image?", "2602-fe0f")]
    code = {f["image"]: i for i, f in enumerate(facts)}
    asked = [(code.get(f"twemoji/{c}.png", 0), "", q, "") for q, c in samples]
    for (i, _, q, _), (got, lead) in zip(asked, answer_all(net, tokens, pixels, asked)):
        print(f"{facts[i]['image']} {q} -> {got} ({lead:.2f})")


if __name__ == "__main__":
    main()
