"""Training runs of twenty steps, as PyTorch, transformers and peft compute them: what `llava train` must reproduce.

Three runs over the tiny models of this folder, a handful of records each, all of which make up every step: so the order
of records does not matter. Per run one file expected/run-NAME.safetensors:

    loss, loss_bf16   [20]  mean of the step's losses, in fp32 and in bf16 with fp32 masters (as DeepSpeed has them)
    norm              [20]  of all gradients, before clipping
    moment1.TENSOR          Adam's first moment after the first step: 0.1 times the (clipped) gradient
    final.TENSOR            the trained tensors at the end, in fp32
    start.TENSOR            what the run starts from and no model holds: the adapters

Tensors of more than SKETCH numbers, but for start's, are kept as a sketch, T @ S with S[i, k] = +-1 by a rule (see
sketch, signs): an error in any number of T moves it, and the relative size of a difference is kept. The conversations
are in training/NAME.json, in LLaVA's format; learning rates that each step used and the runs' settings in manifest.json,
"runs".
"""
import json
import os

import numpy as np
import torch
import torch.nn.functional as F

from golden.common import IGNORE, IMAGE, fresh, notes, opt, relative, write_json, write_safetensors
from golden.forward import Plain, cast, clip_config, llm_config, load_clip, project
from golden.pictures import clip_normalise, open_rgb, preprocess
from golden.text import SYSTEM, Tokenizer
from golden.training import plain_labels, v1_labels

STEPS, WARMUP, SKETCH, WIDTH = 20, 2, 200, 6
ALL_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 4, 8


def turn(*text):
    return [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(text)]


PLAIN = [{"id": "p0", "image": "wide-37x23.png", "conversations": turn("<image>\nDescribe it.", "a cat on a mat")},
         {"id": "p1", "image": "tall-20x61.jpg", "conversations": turn("Say it.\n<image>", "two cups of tea")},
         {"id": "p2", "image": "square-50x50.png", "conversations": turn("<image>", "the house on the hill is red")},
         {"id": "p3", "image": "thin-1x9.png", "conversations": turn("<image>\nShort.", "night")}]
CHAT = [{"id": "c0", "image": "wide-37x23.png", "conversations": turn(
            "<image>\nWhat is in the picture?", "Two cups of tea.", "Is it red?", "Yes, it is.")},
        {"id": "c1", "conversations": turn("Is the sky blue?", "Yes, it is.", "Why?", "It is a photo of the sky.")},
        {"id": "c2", "image": "tall-20x61.jpg", "conversations": turn(
            "How many birds are there?\n<image>", "There are three.")},
        {"id": "c3", "image": "square-50x50.png", "conversations": turn("<image>\nColour?", "White.")}]
# accumulate: records per micro-batch are one, and the step's loss is the mean of their means
RUNS = [
    {"name": "projector", "version": "plain", "records": PLAIN, "aspect": "square", "accumulate": False, "lr": 1e-2,
     "schedule": "cosine", "clip": 0.0, "decay": 0.0, "projector_lr": None, "train": "projector"},
    {"name": "full", "version": "v1", "records": CHAT, "aspect": "pad", "accumulate": True, "lr": 1e-3,
     "schedule": "linear", "clip": 1.0, "decay": 0.1, "projector_lr": None, "train": "full"},
    {"name": "lora", "version": "v1", "records": CHAT, "aspect": "pad", "accumulate": False, "lr": 5e-3,
     "schedule": "cosine", "clip": 1.0, "decay": 0.05, "projector_lr": 1e-3, "train": "lora"},
]


def signs(n):
    """[n, WIDTH] of +-1: bits of a multiplicative hash of the place"""
    at = np.arange(n * WIDTH, dtype=np.uint64).reshape(n, WIDTH)
    bits = (at * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)) >> np.uint64(40) & np.uint64(1)
    return bits.astype(np.float64) * 2 - 1


def sketch(t):
    """what is kept of a tensor: itself, or sums in double along its longer side, as [shorter side, WIDTH] in fp32"""
    a = t.detach().double().numpy()
    if a.size <= SKETCH:
        return t.detach().float().clone()
    a = a[None] if a.ndim == 1 else a.T if a.shape[0] > a.shape[1] else a
    return torch.from_numpy((a @ signs(a.shape[1])).astype(np.float32))


def load(folder, name):
    return torch.load(os.path.join(opt.out, "models", folder, name))


class Setting:
    """The model that all runs start from: vicuna-base with clip-tiny and a projector between them."""

    def __init__(self):
        with open(os.path.join(opt.out, "models/vicuna-base/config.json"), encoding="utf-8") as f:
            c = json.load(f)
        with open(os.path.join(opt.out, "models/clip-tiny/config.json"), encoding="utf-8") as f:
            v = json.load(f)["vision_config"]
        self.llm = {**c, "head_dim": c["hidden_size"] // c["num_attention_heads"],
                    "rope": {"rope_type": "default", "rope_theta": 10000.0}}
        keep = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
                "projection_dim")
        self.clip = {k: v[k] for k in keep}
        self.w = {k: t for k, t in load("vicuna-base", "pytorch_model.bin").items() if "inv_freq" not in k}
        self.cw = {k: t for k, t in load("clip-tiny", "pytorch_model.bin").items()
                   if k.startswith("vision_model.") and "position_ids" not in k}
        self.projector = load("llava-projector-mlp", "mm_projector.bin")
        with open(os.path.join(opt.out, "models/vicuna-base/tokenizer.model"), "rb") as f:
            model = f.read()
        with open(os.path.join(opt.out, "models/vicuna-base/tokenizer_config.json"), encoding="utf-8") as f:
            self.tok = Tokenizer(model, json.load(f)["legacy"])

    def sample(self, run, record):
        """(ids, labels, pixels [3,s,s] or None)"""
        said = [t["value"] for t in record["conversations"]]
        pixels = None
        if "image" in record:
            im = open_rgb(os.path.join(opt.out, "pictures", record["image"]))
            crop, _ = preprocess(im, {"image_aspect_ratio": run["aspect"]}, self.clip["image_size"])
            pixels = torch.from_numpy(clip_normalise(crop[0]))
            said = [("<image>\n" + t.replace("<image>", "").strip()).strip() if "<image>" in t else t for t in said]
        if run["version"] == "plain":
            ids, labels = plain_labels(self.tok, "<image>" + said[1] + "\n")
        else:
            text = SYSTEM + "".join(f" USER: {said[i]} ASSISTANT: {said[i + 1]}</s>" if i == 0 else
                                    f"USER: {said[i]} ASSISTANT: {said[i + 1]}</s>" for i in range(0, len(said), 2))
            ids, labels = v1_labels(self.tok, text)
        return ids, labels, pixels


class Engine:
    """Parameters and the loss of a batch, over transformers and peft, or (plain) over the short forward pass."""

    def __init__(self, setting, run, dtype, start):
        self.s, self.run, self.dtype = setting, run, dtype
        self.p = {k: torch.nn.Parameter(t.float().to(dtype)) for k, t in setting.projector.items()}
        if opt.plain:
            self.plain_start(start)
        else:
            self.transformers_start(start)
        with torch.no_grad():
            self.features = [None if x is None else self.tower(x) for _, _, x in self.samples()]

    def samples(self):
        return [self.s.sample(self.run, r) for r in self.run["records"]]

    # ---- the short forward pass

    def plain_start(self, start):
        self.w = {k: torch.nn.Parameter(t.float().clone().to(self.dtype)) for k, t in self.s.w.items()}
        self.l = {k: torch.nn.Parameter(t.clone().to(self.dtype)) for k, t in start.items()}
        self.eyes = Plain(self.s.llm, {}, self.s.clip, {k: t.float() for k, t in self.s.cw.items()})

    def merged(self):
        w = dict(self.w)
        for k in self.w:
            a = k.replace(".weight", ".lora_A.weight")
            if a in self.l:
                w[k] = w[k] + ALPHA / RANK * (self.l[a.replace("lora_A", "lora_B")] @ self.l[a])
        return w

    # ---- transformers and peft

    def transformers_start(self, start):
        import transformers as tf
        self.lm = tf.LlamaForCausalLM(llm_config(self.s.llm)).train()
        self.lm.load_state_dict({k: t.float() for k, t in self.s.w.items()}, strict=True)
        self.lm.config.use_cache = False
        self.vision = tf.CLIPVisionModel(clip_config(self.s.clip)).eval()
        load_clip(self.vision, self.s.cw)
        cast(self.vision, self.dtype)
        if self.run["train"] == "lora":
            import peft
            self.lm = peft.get_peft_model(self.lm, peft.LoraConfig(
                r=RANK, lora_alpha=ALPHA, target_modules=ALL_LINEARS, lora_dropout=0.0, bias="none",
                task_type="CAUSAL_LM"))
            mine = {self.canonical(k): q for k, q in self.lm.named_parameters() if "lora_" in k}
            assert set(mine) == set(start), sorted(set(mine) ^ set(start))[:4]
            for k, q in mine.items():
                q.data = start[k].clone()
        cast(self.lm, self.dtype)

    @staticmethod
    def canonical(name):
        return name.replace("base_model.model.", "").replace(".base_layer", "").replace(".default", "")

    # ---- both

    def tower(self, pixels):
        if opt.plain:
            return self.eyes.tower(pixels).to(self.dtype)
        states = self.vision(pixel_values=pixels[None].to(self.dtype), output_hidden_states=True).hidden_states
        return states[-2][0, 1:]

    def trained(self):
        """name -> parameter, in LLaVA's names"""
        if self.run["train"] == "projector":
            return dict(self.p)
        if opt.plain:
            more = self.l if self.run["train"] == "lora" else self.w
        else:
            more = {self.canonical(k): q for k, q in self.lm.named_parameters()
                    if self.run["train"] == "full" or "lora_" in k}
        return {**more, **self.p}

    def embed(self, ids):
        table = self.w["model.embed_tokens.weight"] if opt.plain else self.lm.get_input_embeddings().weight
        return F.embedding(torch.tensor(ids, dtype=torch.long), table)

    def row(self, i):
        """embeddings [t, c] and labels [t] of record i, pictures put in"""
        ids, labels, pixels = self.samples()[i]
        x, y = [], []
        for k, label in zip(ids, labels):
            if k == IMAGE:
                feature = project(self.p, self.features[i])
                x.append(feature)
                y += [IGNORE] * len(feature)
            else:
                x.append(self.embed([k]))
                y.append(label)
        x = torch.cat(x)
        return x if pixels is not None else torch.cat((x, project(self.p, torch.zeros_like(self.any()))[0:0])), y

    def any(self):
        return next(f for f in self.features if f is not None)

    def loss(self, which):
        """mean over the supervised tokens of these records, padded on the right as LLaVA's collator does"""
        rows = [self.row(i) for i in which]
        if opt.plain:
            engine = Plain(self.s.llm, {})
            engine.w = self.merged()
            parts = [F.cross_entropy(engine.logits(x)[:-1].float(), torch.tensor(y[1:]), ignore_index=IGNORE,
                                     reduction="sum") for x, y in rows]
            return sum(parts) / sum(k != IGNORE for _, y in rows for k in y[1:])
        longest = max(len(x) for x, _ in rows)
        x = torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x, _ in rows])
        labels = torch.tensor([y + [IGNORE] * (longest - len(y)) for _, y in rows])
        mask = torch.tensor([[1] * len(y) + [0] * (longest - len(y)) for _, y in rows])
        return self.lm(inputs_embeds=x, attention_mask=mask, labels=labels, use_cache=False).loss


def adapters(setting):
    """A uniform in +-1/sqrt(in) (kaiming with a = sqrt 5), B zero; in LLaVA's names"""
    g, out = torch.Generator().manual_seed(7), {}
    for k, t in setting.w.items():
        if any(n in k for n in ALL_LINEARS):
            bound = t.shape[1] ** -0.5
            out[k.replace(".weight", ".lora_A.weight")] = (torch.rand(RANK, t.shape[1], generator=g) * 2 - 1) * bound
            out[k.replace(".weight", ".lora_B.weight")] = torch.zeros(t.shape[0], RANK)
    return out


def scheduler(name, optimizer, steps, warmup):
    if not opt.plain:
        import transformers as tf
        return tf.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    half = {"linear": lambda p: 1 - p, "cosine": lambda p: 0.5 * (1 + np.cos(np.pi * p))}[name]
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: s / max(1, warmup) if s < warmup else half((s - warmup) / (steps - warmup)))


def groups(run, masters):
    """LLaVA's create_optimizer: matrices decay, vectors do not; the projector may have its own rate"""
    out = []
    for projector in (False, True):
        for matrix in (True, False):
            own = run["projector_lr"] is not None
            part = [m for k, m in masters.items()
                    if (m.dim() > 1) == matrix and ("mm_projector" in k) == projector]
            rate = run["projector_lr"] if projector and own else run["lr"]
            if part:
                out.append({"params": part, "weight_decay": run["decay"] if matrix else 0.0, "lr": rate})
    return out


def train(setting, run, dtype, start, keep):
    """the run; keep: a dict for what the file holds of it, or None"""
    engine = Engine(setting, run, dtype, start)
    params = engine.trained()
    for q in (engine.w.values() if opt.plain else engine.lm.parameters()):
        q.requires_grad_(False)
    for q in params.values():
        q.requires_grad_(True)
    masters = params if dtype == torch.float32 else {k: q.detach().float().clone() for k, q in params.items()}
    optimizer = torch.optim.AdamW(groups(run, masters), lr=run["lr"], betas=(0.9, 0.999), eps=1e-8, foreach=False)
    rate = scheduler(run["schedule"], optimizer, STEPS, WARMUP)
    n = len(run["records"])
    micro = [[i] for i in range(n)] if run["accumulate"] else [list(range(n))]
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        for q in params.values():
            q.grad = None
        total = 0.0
        for which in micro:
            loss = engine.loss(which) / len(micro)
            loss.backward()
            total += float(loss.detach().float())
        if masters is not params:
            for k, q in params.items():
                masters[k].grad = torch.zeros_like(masters[k]) if q.grad is None else q.grad.float()
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(masters.values()), run["clip"] or float("inf"))))
        rates.append(optimizer.param_groups[0]["lr"])
        losses.append(total)
        optimizer.step()
        rate.step()
        if masters is not params:
            for k, q in params.items():
                q.data.copy_(masters[k])
        if keep is not None and step == 0:
            keep.update({"moment1." + k: sketch(optimizer.state[m]["exp_avg"]) for k, m in masters.items()
                         if m in optimizer.state})
    if keep is not None:
        keep.update({"final." + k: sketch(m) for k, m in masters.items()})
    return losses, norms, rates


def write_run(setting, run):
    start = adapters(setting) if run["train"] == "lora" else {}
    out = {"start." + k: t for k, t in start.items() if "lora_A" in k}
    losses, norms, rates = train(setting, run, torch.float32, start, out)
    low, _, _ = train(setting, run, torch.bfloat16, start, None) if not opt.plain else (losses, 0, 0)
    out.update(loss=torch.tensor(losses), loss_bf16=torch.tensor(low), norm=torch.tensor(norms))
    second = None
    if not opt.plain:
        opt.plain = True
        plain, _, _ = train(setting, run, torch.float32, start, None)
        opt.plain = False
        second = max(abs(a - b) / abs(b) for a, b in zip(plain, losses))
        assert second < 1e-4, f"{run['name']}: the short forward pass differs by {second}"
    write_safetensors(os.path.join(opt.out, "expected", f"run-{run['name']}.safetensors"), out)
    keys = ("name", "version", "aspect", "accumulate", "lr", "schedule", "clip", "decay", "projector_lr", "train")
    write_json(os.path.join(opt.out, "training", run["name"] + ".json"), run["records"])
    low_by = relative(torch.tensor(low), torch.tensor(losses))
    print(run["name"], [round(x, 4) for x in losses], "bf16", low_by, "plain", second, flush=True)
    return {**{k: run[k] for k in keys}, "records": f"training/{run['name']}.json", "steps": STEPS, "warmup": WARMUP,
            "rank": RANK, "alpha": ALPHA, "rates": rates, "expected": f"expected/run-{run['name']}.safetensors",
            "bf16_against_fp32_relative": low_by, "plain_against_transformers_relative": second}


def schedules():
    """what transformers' schedulers give over 20 steps with 3 of warm-up, as factors of the learning rate"""
    out = {}
    for name in ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
                 "inverse_sqrt"):
        if opt.plain:
            continue
        q = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([q], lr=1.0)
        rate, row = scheduler(name, optimizer, STEPS, 3), []
        for _ in range(STEPS + 1):
            row.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            rate.step()
        out[name] = row
    return out


def runs():
    fresh(opt.out, "training")
    setting = Setting()
    notes["runs"] = [write_run(setting, r) for r in RUNS]
    write_json(os.path.join(opt.out, "training", "schedules.json"), {"warmup": 3, "steps": STEPS, "rates": schedules()})
