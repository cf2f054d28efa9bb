#!/usr/bin/python3
"""LoRA adapters over HTTP: `--lora NAME=DIR` beside the demo model and beside a language model that sees through its
adapter alone. Each is a model by its name, in the OpenAI API, in LLaVA's protocol and on the page, and answers as
`llava run` does with the adapter merged."""
import base64
import json
import os
import sys
import threading

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import PICTURE, Temp, finish, llava, model, ok, read_safetensors, write_safetensors  # noqa: E402
from serving import APPLE, DEMO, Server, generate, post, python_controller, request, wait_for  # noqa: E402

QUESTION = "What is this?"
RANK, ALPHA = 4, 8


def data_uri(path):
    with open(path, "rb") as f:
        return "data:image/png;base64," + base64.b64encode(f.read()).decode()


def adapter(folder, seed, size, projector=None, **config):
    """An adapter of the demo's q_proj and down_proj as PEFT leaves it; projector: tensors as LLaVA's training leaves
    them beside it."""
    os.makedirs(folder)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(4):
        for name, n_in, n_out in (("self_attn.q_proj", 256, 256), ("mlp.down_proj", 704, 256)):
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors[stem + ".lora_A.weight"] = rng.standard_normal((RANK, n_in), dtype=np.float32) / 16
            tensors[stem + ".lora_B.weight"] = rng.standard_normal((n_out, RANK), dtype=np.float32) * size
    write_safetensors(os.path.join(folder, "adapter_model.safetensors"), tensors)
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as f:
        json.dump({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": "demo", **config}, f)
    if projector:
        write_safetensors(os.path.join(folder, "non_lora_trainables.safetensors"), projector)
    return folder


def demo_projector(change):
    t = read_safetensors(os.path.join(DEMO, "model.safetensors"))
    as_f32 = {k: (v.astype(np.uint32) << 16).view(np.float32) for k, v in t.items() if "multi_modal_projector" in k}
    names = {"linear_1": "0", "linear_2": "2"}
    return {f"base_model.model.model.mm_projector.{names[k.split('.')[1]]}.{k.split('.')[2]}": change(v)
            for k, v in as_f32.items()}


def merged(folder, base, picture, question=QUESTION):
    more = ["--image-file", picture] if picture else []
    return llava("run", "--quiet", "--model-path", folder, "--model-base", base, "--query", question, "--temperature", "0",
                 "--max-new-tokens", "24", "--dtype", "f32", *more).out.strip()


def chat(port, name, picture, question=QUESTION, **more):
    content = [{"type": "text", "text": question}]
    if picture:
        content.append({"type": "image_url", "image_url": {"url": data_uri(picture)}})
    return post(port, "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": content}],
                                               "temperature": 0, "max_tokens": 24, **more})


def said(r):
    return r[1]["choices"][0]["message"]["content"].strip() if r[0] == 200 else r


def test_names(port):
    models = json.loads(request(port, "GET", "/v1/models")[2])["data"]
    ok([m["id"] for m in models] == ["demo", "plain", "seeing"] and [m.get("parent") for m in models] == [None, "demo", "demo"],
       "adapters are models", models)
    one = json.loads(request(port, "GET", "/v1/models/seeing")[2])
    ok(one == models[2], "one of them by its name", one)
    ok(post(port, "/list_models")[1] == {"models": ["demo", "plain", "seeing"]}, "LLaVA's controller lists them")
    status = post(port, "/worker_get_status")[1]
    ok(status["model_names"] == ["demo", "plain", "seeing"], "LLaVA's worker lists them", status)
    ok(post(port, "/get_worker_address", {"model": "plain"})[1]["address"] != "", "an adapter has a worker")
    ok(json.loads(request(port, "GET", "/api/config")[2])["models"] == ["demo", "plain", "seeing"], "the page lists them")
    r = chat(port, "nobody", None)
    ok(r[0] == 404 and r[1]["error"]["param"] == "model" and "/v1/models" in r[1]["error"]["message"], "another name", r)


def test_answers(port, want):
    """Side by side, so that steps hold rows of several of them."""
    got, threads = {}, []
    for name in want:
        for kind in want[name]:
            def ask(name=name, kind=kind):
                got[name, kind] = chat(port, name, APPLE if kind else None)
            threads += [threading.Thread(target=ask)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for (name, kind), r in sorted(got.items()):
        ok(said(r) == want[name][kind] and r[1]["model"] == name,
           f"{name} {'with a picture' if kind else 'alone'}: as merged", (r, want[name][kind]))
    ok(len({said(got[n, 1]) for n in want}) == len(want), "three models say three things", got)
    ok(said(chat(port, "seeing", APPLE)) == want["seeing"][1] and said(chat(port, "demo", APPLE)) == want["demo"][1],
       "nor does what was kept of one serve another")


def test_protocols(port, want):
    def system(who):
        return f"A chat between a curious {who} and an artificial intelligence assistant. The assistant gives helpful, " \
               f"detailed, and polite answers to the {who}'s questions. USER: <image>\nWhat is this? ASSISTANT:"

    prompt = system("human")
    body = {"prompt": prompt, "temperature": 0, "top_p": 1, "max_new_tokens": 24, "stop": "</s>",
            "images": [data_uri(APPLE).split(",")[1]]}
    for name in ("demo", "seeing"):
        status, said_ = generate(port, {**body, "model": name})
        ok(status == 200 and said_[-1]["text"][len(prompt):].strip() == want[name][1], f"LLaVA's protocol, {name}", said_[-1:])
    status, said_ = generate(port, {**body, "model": "someone"})
    ok(status == 200 and said_[-1]["text"][len(prompt):].strip() == want["demo"][1], "a name unknown: the model, as there")
    status, _, data = request(port, "POST", "/api/chat", {
        "model": "seeing", "temperature": 0, "max_new_tokens": 24,
        "messages": [{"role": "user", "text": QUESTION, "images": [data_uri(APPLE)]}]})
    text = "".join(json.loads(x[6:]).get("text", "") for x in data.decode().split("\n\n") if x.startswith("data: "))
    there = generate(port, {**body, "prompt": system("user"), "model": "seeing"})[1][-1]["text"][len(system("user")):]
    ok(status == 200 and text.strip() == there.strip() != "", "the page's interface", (data, there))


def test_blind(tmp):
    """The fixture of LLaVA's own LoRA training: a language model, and an adapter with projector and config."""
    lora, base = model("llava-lora"), model("vicuna-base")
    want = llava("run", "--quiet", "--model-path", lora, "--model-base", base, "--image-file", PICTURE, "--query", QUESTION,
                 "--temperature", "0", "--max-new-tokens", "24", "--dtype", "f32").raw
    with Server("serve", "--model-path", base, "--lora", f"tuned={lora}", "--dtype", "f32") as s:
        r = chat(s.port, "tuned", PICTURE)
        ok(r[0] == 200 and said(r) == want.decode(errors="replace").strip(), "a language model sees through its adapter",
           (r, want))
        r = chat(s.port, "vicuna-base", PICTURE)
        ok(r[0] == 400 and "no projector" in r[1]["error"]["message"], "and not without", r)
        ok(chat(s.port, "vicuna-base", None)[0] == 200, "but reads text")
    controller = python_controller()
    with Server("worker", "--model-path", base, "--lora", f"tuned={lora}", "--controller-address", controller.url):
        known = wait_for(lambda: list(controller.workers.values()))
        ok(known and known[0]["worker_status"]["model_names"] == ["vicuna-base", "tuned"], "a worker registers both", known)
    controller.stop()


def test_whole(tmp, want):
    """The projector among the adapter's matrices, as PEFT keeps what modules_to_save names."""
    folder = adapter(os.path.join(tmp, "whole"), 2, 0.01)
    path = os.path.join(folder, "adapter_model.safetensors")
    write_safetensors(path, {**read_safetensors(path), **demo_projector(lambda v: v * np.float32(-0.8))})
    with Server("serve", "--model-path", DEMO, "--lora", f"whole={folder}", "--dtype", "f32") as s:
        got = [said(chat(s.port, "whole", picture)) for picture in (None, APPLE)]
        ok(got == [want[0], want[1]], "a projector in the adapter's own file", (got, want))


def test_refused(tmp):
    extra = {"base_model.model.model.embed_tokens.weight": np.zeros((1536, 256), np.float32)}
    head = adapter(os.path.join(tmp, "l"), 1, 0.1)
    path = os.path.join(head, "adapter_model.safetensors")
    write_safetensors(path, {**read_safetensors(path), "base_model.model.lm_head.weight": np.zeros((1536, 256), np.float32)})
    half = {k: v for k, v in demo_projector(lambda v: v).items() if not k.endswith("2.bias")}
    cases = [
        ("embeddings beside the adapter", adapter(os.path.join(tmp, "e"), 1, 0.1, extra), "embed_tokens"),
        ("a whole head", head, "lm_head"),
        ("half a projector", adapter(os.path.join(tmp, "h"), 1, 0.1, half), "mm_projector.2.bias"),
        ("another rank than said", adapter(os.path.join(tmp, "r"), 1, 0.1, r=5), "rank"),
        ("no such folder", os.path.join(tmp, "none"), "none"),
    ]
    for name, folder, word in cases:
        r = llava("serve", "--model-path", DEMO, "--lora", f"x={folder}", "--port", "0", "--log-dir", tmp)
        ok(r.code == 1 and word in r.err and "x" in r.err and r.err.count("\n") <= 3, name, r.text)
    r = llava("serve", "--model-path", DEMO, "--lora", f"demo={cases[0][1]}", "--port", "0", "--log-dir", tmp)
    ok(r.code == 1 and "name" in r.err, "the model's own name", r.text)


def main():
    with Temp() as t:
        tmp = t.path
        plain = adapter(os.path.join(tmp, "plain"), 1, 0.6)
        seeing = adapter(os.path.join(tmp, "seeing"), 2, 0.01, demo_projector(lambda v: v * np.float32(-0.8)))
        want = {"demo": [None, None], "plain": [None, None], "seeing": [None, None]}
        for kind, pic in enumerate((None, APPLE)):
            want["plain"][kind] = merged(plain, DEMO, pic)
            want["seeing"][kind] = merged(seeing, DEMO, pic)
            more = ["--image-file", pic] if pic else []
            want["demo"][kind] = llava("run", "--quiet", "--model-path", DEMO, "--query", QUESTION, "--temperature", "0",
                                       "--max-new-tokens", "24", "--dtype", "f32", *more).out.strip()
        print("#", want)
        want = {k: dict(enumerate(v)) for k, v in want.items()}
        with Server("serve", "--model-path", DEMO, "--lora", f"plain={plain}", "--lora", f"seeing={seeing}", "--dtype",
                    "f32") as s:
            test_names(s.port)
            test_answers(s.port, want)
            test_protocols(s.port, want)
        test_whole(tmp, want["seeing"])
        test_blind(tmp)
        test_refused(tmp)
    finish()


if __name__ == "__main__":
    main()
