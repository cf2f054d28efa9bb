#!/usr/bin/env python3
"""What transformers says to the questions of the examination, greedily: the answers that tests hold this program to.

usage: eval.py MODEL_DIR WORK_DIR OUT_DIR [--device cuda]
WORK_DIR is train_demo.py's: pictures/, records/twemoji.jsonl, records/openmoji.jsonl. The bf16 weights are computed with
in fp32, eager attention, the vicuna_v1 system text. Writes OUT_DIR/expected.tsv (twemoji, four kinds of question),
expected-hard.tsv (openmoji, the name only) and pictures.tsv (the first 16 hex digits of the SHA-256 of each picture's RGB
bytes, row by row); prints how many are right. Needs PyTorch and transformers 5.
"""
import argparse
import hashlib
import json
import os
import time

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the user's questions.")
LONGEST = 32       # tokens of an answer


class Model:
    def __init__(self, folder, device):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.net = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.net, self.device = self.net.to(device).eval(), device
        self.eos = self.net.generation_config.eos_token_id
        self.marks = "<image>" * self.net.config.image_seq_length

    def ids(self, question):
        """the prompt; each <image> is one patch"""
        text = f"{SYSTEM} USER: {self.marks}\n{question} ASSISTANT:"
        return self.processor.tokenizer(text).input_ids

    def pixels(self, paths):
        some = [Image.open(p).convert("RGB") for p in paths]
        return self.processor.image_processor(images=some, return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def answer(self, ids, pixels):
        """[(answer, smallest lead of the chosen token over the next)] to prompts of one length"""
        text = torch.tensor(ids, device=self.device)
        got = self.net.generate(input_ids=text, attention_mask=torch.ones_like(text), pixel_values=pixels.to(self.device),
                                do_sample=False, max_new_tokens=LONGEST, output_scores=True, return_dict_in_generate=True)
        out = got.sequences[:, text.shape[1]:]
        live = (out != self.eos).cumprod(1).roll(1, 1)
        live[:, 0] = 1
        best = torch.stack(got.scores, 1).float().topk(2, -1).values
        lead = (best[..., 0] - best[..., 1]).masked_fill(live == 0, float("inf")).amin(1).tolist()
        rows = [row[:row.index(self.eos)] if self.eos in row else row for row in out.tolist()]
        return list(zip([self.processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows], lead))


def ask(model, folder, asked, batch=512):
    """one answer a question; equal lengths go together, without padding"""
    ids = [model.ids(q["text"]) for q in asked]
    order, said = sorted(range(len(asked)), key=lambda i: len(ids[i])), [None] * len(asked)
    while order:
        now = [i for i in order[:batch] if len(ids[i]) == len(ids[order[0]])]
        order = order[len(now):]
        pixels = model.pixels([os.path.join(folder, asked[i]["image"]) for i in now])
        for i, one in zip(now, model.answer([ids[i] for i in now], pixels)):
            said[i] = one
    return said


def write(path, asked, said):
    """One line a question: kind by its first letter; 'right' empty when the answer is right, 'lead' when 0.05 or more."""
    with open(path, "w", encoding="utf-8") as f:
        f.write("picture\tkind\tquestion\tanswer\tright\tlead\n")
        for q, (got, lead) in zip(asked, said):
            code, close = os.path.basename(q["image"])[:-4], f"{lead:.4f}" if lead < 0.05 else ""
            f.write(f"{code}\t{q['kind'][0]}\t{q['text']}\t{got}\t{'' if got == q['answer'] else q['answer']}\t{close}\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model"); ap.add_argument("work"); ap.add_argument("out")
    ap.add_argument("--device", default="cuda")
    a = ap.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    os.makedirs(a.out, exist_ok=True)
    model, folder, digests = Model(a.model, a.device), os.path.join(a.work, "pictures"), {}
    for style, file in (("twemoji", "expected.tsv"), ("openmoji", "expected-hard.tsv")):
        with open(os.path.join(a.work, "records", style + ".jsonl"), encoding="utf-8") as f:
            asked, began = [json.loads(line) for line in f], time.time()
        said = ask(model, folder, asked)
        for kind in dict.fromkeys(q["kind"] for q in asked):
            hits = [got == q["answer"] for q, (got, _) in zip(asked, said) if q["kind"] == kind]
            print(f"{style:8s} {kind:7s} {sum(hits)}/{len(hits)} = {sum(hits) / len(hits):.4f}")
        print(f"{style}: {len(asked)} questions, {time.time() - began:.0f} s, {sum(lead < 1e-3 for _, lead in said)} near ties, "
              f"the closest {min(lead for _, lead in said):.5f}", flush=True)
        keep = [k for k in range(len(asked)) if style == "twemoji" or asked[k]["kind"] == "name"]
        write(os.path.join(a.out, file), [asked[k] for k in keep], [said[k] for k in keep])
        for q in asked:
            with Image.open(os.path.join(folder, q["image"])) as picture:
                digests[q["image"]] = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()[:16]
    with open(os.path.join(a.out, "pictures.tsv"), "w", encoding="utf-8") as f:
        f.writelines(f"{image}\t{digest}\n" for image, digest in digests.items())


if __name__ == "__main__":
    main()
