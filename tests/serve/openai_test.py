#!/usr/bin/python3
"""The OpenAI API of `llava serve` on the demo model: models, chats with a picture, streams, errors, limits, keys. What the
openai package does with it: tests/web/openai_test.py."""
import base64
import datetime
import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import finish, llava, ok, place  # noqa: E402
from serving import APPLE, DEMO, Server, metric, post, raw, request, wait_for  # noqa: E402

with open(APPLE, "rb") as f:
    APPLE_BYTES = f.read()
DATA = "data:image/png;base64," + base64.b64encode(APPLE_BYTES).decode()
QUESTION = "What is this?"


def picture(url=DATA):
    return {"type": "image_url", "image_url": {"url": url}}


def text(t=QUESTION):
    return {"type": "text", "text": t}


def chat(port, content, **more):
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "temperature": 0, **more}
    return post(port, "/v1/chat/completions", {k: v for k, v in body.items() if v is not ...})


def events(port, path, body):
    status, headers, data = request(port, "POST", path, {**body, "stream": True})
    lines = [x[6:] for x in data.decode().split("\n\n") if x.startswith("data: ")]
    return status, headers, [json.loads(x) for x in lines if x != "[DONE]"], lines and lines[-1] == "[DONE]"


def said(r):
    return r[1]["choices"][0]["message"]["content"]


def test_tilt(port):
    """logit_bias, penalties and echo."""
    def tokens(**more):
        r = chat(port, [text(), picture()], logprobs=True, **more)
        return [t["token"] for t in r[1]["choices"][0]["logprobs"]["content"]] if r[0] == 200 else r
    first = tokens(max_tokens=1)
    # Without a tokenizer at hand, the token is found by what forbidding it changes.
    hit = [i for i in range(0, 1536, 64) if tokens(max_tokens=1, logit_bias={str(k): -100 for k in range(i, i + 64)}) != first]
    ok(len(hit) == 1, "a bias of -100 forbids a token", (first, hit))
    forced = tokens(max_tokens=3, logit_bias={"300": 100})
    ok(len(forced) == 3 and len({t.strip() for t in forced}) == 1, "one of 100 forces it", forced)
    plain = post(port, "/v1/completions", {"prompt": "USER: Hi ASSISTANT:", "max_tokens": 40, "temperature": 0})
    same = post(port, "/v1/completions", {"prompt": "USER: Hi ASSISTANT:", "max_tokens": 40, "temperature": 0, "logit_bias": {},
                                          "presence_penalty": 0, "frequency_penalty": 0.0, "min_p": 0, "repetition_penalty": 1.0,
                                          "best_of": 1, "ignore_eos": False, "min_tokens": 0, "stop_token_ids": [],
                                          "skip_special_tokens": True, "guided_json": None})
    ok(plain[1]["choices"] == same[1]["choices"], "what changes nothing changes nothing", (plain, same))
    spoken = chat(port, QUESTION, logit_bias={"300": 30}, max_tokens=40, logprobs=True, frequency_penalty=2)
    often = [t["token"] for t in spoken[1]["choices"][0]["logprobs"]["content"]]
    ok(often[0] == forced[0] and len(set(often)) > 1, "a frequency penalty adds up until others win", often)
    prompt = "USER: Hi ASSISTANT:"
    echo = post(port, "/v1/completions", {"prompt": prompt, "max_tokens": 5, "temperature": 0, "echo": True})
    bare = post(port, "/v1/completions", {"prompt": prompt, "max_tokens": 5, "temperature": 0})
    ok(echo[1]["choices"][0]["text"] == prompt + bare[1]["choices"][0]["text"], "echo", (echo, bare))
    _, _, parts, done = events(port, "/v1/completions", {"prompt": prompt, "max_tokens": 5, "temperature": 0, "echo": True})
    ok(done and "".join(p["choices"][0]["text"] for p in parts) == echo[1]["choices"][0]["text"], "echo in a stream", parts)


def test_models(port):
    status, _, data = request(port, "GET", "/v1/models")
    models = json.loads(data)
    ok(status == 200 and models["object"] == "list" and [m["id"] for m in models["data"]] == ["demo"], "models", models)
    ok(json.loads(request(port, "GET", "/v1/models/demo")[2])["id"] == "demo", "a model by its name")
    ok(models["data"][0]["max_model_len"] == 1024, "how long a conversation may be", models)
    ok(abs(models["data"][0]["created"] - time.time()) < 3600, "and since when it is there", models)
    status, _, data = request(port, "GET", "/v1/models/org/none")
    ok(status == 404 and json.loads(data)["error"]["code"] == "model_not_found", "one that is not there", data)
    ok(json.loads(request(port, "GET", "/health")[2])["status"] == "ok", "health")


def test_chat(port):
    cli = llava("run", "--quiet", "--model-path", DEMO, "--image-file", APPLE, "--query", QUESTION, "--temperature",
                "0").out.strip()
    r = chat(port, [text(), picture()])
    ok(r[0] == 200 and said(r) == cli == "red apple", "a picture is described as on the command line", (r, cli))
    c, u = r[1]["choices"][0], r[1]["usage"]
    ok(c["finish_reason"] == "stop" and c["message"]["role"] == "assistant" and c["logprobs"] is None and
       u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"], "the answer's shape", r)
    ok(said(chat(port, [picture(), text()])) == cli, "the order of picture and text does not matter")
    ok(said(chat(port, [text(), {"type": "image_url", "image_url": DATA}])) == cli, "image_url as a string")
    ok(said(chat(port, [text(), picture(DATA.replace("data:", "DATA:").replace("base64", "BASE64"))])) == cli,
       "a scheme in capitals")
    again = chat(port, [text(), picture()])
    ok(said(again) == cli and again[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "the same again is cached", again)
    short = chat(port, [text(), picture()], max_tokens=1)
    ok(short[1]["choices"][0]["finish_reason"] == "length" and short[1]["usage"]["completion_tokens"] == 1, "max_tokens", short)
    ok(said(chat(port, [text(), picture()], stop="apple")) == "red", "a stop string")
    ok(said(chat(port, [text(), picture()], stop=["zzz", " apple"])) == "red", "several stop strings")
    idle = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none", "modalities": ["text"]}
    ok(said(chat(port, [text(), picture()], max_tokens=8.0, **idle)) == cli, "8.0 is 8; tools that must not be called are none")
    many = chat(port, [text(), picture()], n=3)
    ok([c["index"] for c in many[1]["choices"]] == [0, 1, 2] and
       all(c["message"]["content"] == cli for c in many[1]["choices"]), "n answers", many)
    hot = [said(chat(port, QUESTION, temperature=1.5, seed=s, max_tokens=12)) for s in (1, 1, 2, 3, 4)]
    ok(hot[0] == hot[1] and len(set(hot)) > 1, "a seed decides a draw", hot)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [picture(), text()]},
            {"role": "assistant", "content": cli}, {"role": "user", "content": [text()]}]
    r = post(port, "/v1/chat/completions", {"model": "demo", "messages": talk, "temperature": 0})
    ok(r[0] == 200 and r[1]["choices"][0]["finish_reason"] in ("stop", "length"), "a conversation with a system message", r)


def test_logprobs(port):
    r = chat(port, [text(), picture()], logprobs=True, top_logprobs=3)
    tokens = r[1]["choices"][0]["logprobs"]["content"]
    if not ok(len(tokens) > 0, "logprobs are there", r):
        return
    ok(all(t["logprob"] <= 0 and len(t["top_logprobs"]) == 3 for t in tokens), "each token has its likeliest", tokens)
    ok(all(t["logprob"] == t["top_logprobs"][0]["logprob"] for t in tokens), "a greedy answer takes the first", tokens)
    ok(bytes(sum((t["bytes"] for t in tokens), [])).decode() == said(r) == "".join(t["token"] for t in tokens),
       "joined, they are the text", r)
    ok(len(tokens) == r[1]["usage"]["completion_tokens"] and tokens[-1]["bytes"] == [] and
       all(t["top_logprobs"][0]["token"] == t["token"] for t in tokens), "the end is one that adds nothing to it", tokens)
    _, _, parts, _ = events(port, "/v1/chat/completions", {
        "messages": [{"role": "user", "content": [text(), picture()]}], "temperature": 0, "logprobs": True})
    streamed = [t["token"] for p in parts for t in (p["choices"][0]["logprobs"] or {"content": []})["content"]]
    ok(streamed == [t["token"] for t in tokens] and parts[-1]["choices"][0]["logprobs"] is None, "the same in a stream", parts)
    prompt = "USER: What is this? ASSISTANT: It is a"
    for seed in range(4):
        r = post(port, "/v1/completions", {"prompt": prompt, "logprobs": 2, "max_tokens": 12, "temperature": 1.5, "seed": seed})
        c, lp = r[1]["choices"][0], r[1]["choices"][0]["logprobs"]
        ok(len(lp["tokens"]) == len(lp["token_logprobs"]) == len(lp["text_offset"]) == r[1]["usage"]["completion_tokens"] and
           "".join(lp["tokens"]) == c["text"] and
           all(c["text"][at:].startswith(t) for at, t in zip(lp["text_offset"], lp["tokens"])), "a completion's logprobs", r)
        ok(all(top.get(t) == at and 2 <= len(top) <= 3 for top, t, at in
               zip(lp["top_logprobs"], lp["tokens"], lp["token_logprobs"])), "what was drawn is among the likeliest", lp)
    r = post(port, "/v1/completions", {"prompt": "USER: Describe the picture. ASSISTANT:", "max_tokens": 1, "temperature": 0})
    ok(r[1]["choices"][0]["text"].startswith(" "), "a completion follows its prompt: the first word keeps its space", r)


def test_prompt_logprobs(port):
    """echo with logprobs: what evaluation harnesses score texts by."""
    prompt = "USER: What is this? ASSISTANT: It is a red apple"
    ids = post(port, "/tokenize", {"prompt": prompt})[1]["tokens"]
    how = {"max_tokens": 3, "temperature": 0, "logprobs": 2}
    r = post(port, "/v1/completions", {"prompt": prompt, "echo": True, **how})
    c, lp = r[1]["choices"][0], r[1]["choices"][0]["logprobs"]
    n = len(ids)
    ok(c["text"].startswith(prompt) and len(lp["tokens"]) == n + r[1]["usage"]["completion_tokens"] ==
       len(lp["token_logprobs"]) == len(lp["top_logprobs"]) == len(lp["text_offset"]), "echo with logprobs", r)
    ok(lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None and all(x <= 0 for x in lp["token_logprobs"][1:]) and
       all(2 <= len(t) <= 3 for t in lp["top_logprobs"][1:n]), "of each but the first", lp)
    ok("".join(lp["tokens"]) == c["text"] and all(c["text"][at:].startswith(t) for at, t in zip(lp["text_offset"], lp["tokens"])),
       "the tokens are the text, each at its place", lp)
    for k in (3, n // 2, n - 1):  # each is as likely as an answer's first token is after what stands before it
        one = post(port, "/v1/completions", {"prompt": ids[:k], "max_tokens": 1, "temperature": 0, "logprobs": 20,
                                             "logit_bias": {str(ids[k]): 100}})
        got = one[1]["choices"][0]["logprobs"]["token_logprobs"][0]
        ok(abs(got - lp["token_logprobs"][k]) < 1e-3, f"position {k}: {got}", lp["token_logprobs"][k])
    bare = post(port, "/v1/completions", {"prompt": prompt, **how})[1]["choices"][0]
    ok(c["text"] == prompt + bare["text"] and lp["token_logprobs"][n] == bare["logprobs"]["token_logprobs"][0],
       "the answer is as without", (c, bare))
    again = post(port, "/v1/completions", {"prompt": ids, "echo": True, "n": 2, **how})
    ok([x["logprobs"]["token_logprobs"] for x in again[1]["choices"]] == [lp["token_logprobs"]] * 2, "of tokens, twice", again)
    _, _, parts, _ = events(port, "/v1/completions", {"prompt": prompt, "echo": True, **how})
    joined = [t for p in parts if p["choices"][0]["logprobs"] for t in p["choices"][0]["logprobs"]["token_logprobs"]]
    ok("".join(p["choices"][0]["text"] for p in parts) == c["text"] and joined == lp["token_logprobs"], "in a stream", parts)
    one = post(port, "/v1/completions", {"prompt": ids[:1], "echo": True, "max_tokens": 1, "logprobs": 1})
    ok(one[1]["choices"][0]["logprobs"]["token_logprobs"][0] is None, "a prompt of one token", one)


def test_schema(port):
    r = chat(port, [text(), picture()], response_format={"type": "json_object"}, max_tokens=60)
    ok(r[0] == 200 and (r[1]["choices"][0]["finish_reason"] == "length" or isinstance(json.loads(said(r)), dict)),
       "an answer that is a JSON object", r)
    schema = {"type": "object", "properties": {"fruit": {"enum": ["apple", "pear"]}, "red": {"type": "boolean"}},
              "required": ["fruit", "red"], "additionalProperties": False}
    how = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, "max_tokens": 300}
    for more in ({}, {"temperature": 1.5, "seed": 3, "n": 3}):
        r = chat(port, [text(), picture()], **{**how, **more})
        answers = [json.loads(c["message"]["content"]) for c in r[1]["choices"]] if r[0] == 200 else []
        ok(answers and all(a["fruit"] in ("apple", "pear") and isinstance(a["red"], bool) for a in answers),
           "answers that fit a schema", r)
    r = chat(port, [text(), picture()], response_format={"type": "json_object", "schema": {"const": "42"}}, max_tokens=300)
    ok(r[0] == 200 and json.loads(said(r)) == "42", "a schema beside json_object", r)
    held = {"type": "object", "additionalProperties": False, "required": ["n", "x", "code", "day", "mail"], "properties": {
        "n": {"type": "integer", "minimum": 3, "maximum": 12}, "x": {"type": "number", "exclusiveMinimum": -1, "maximum": 1},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, "day": {"type": "string", "format": "date"},
        "mail": {"type": "string", "format": "email"}}}
    for seed in range(3):
        r = chat(port, [text(), picture()], max_tokens=700, temperature=1.5, seed=seed,
                 response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": held}})
        c = r[1]["choices"][0] if r[0] == 200 else {}
        v = json.loads(said(r)) if c.get("finish_reason") == "stop" else None
        ok(r[0] == 200 and (v is None or (3 <= v["n"] <= 12 and -1 < v["x"] <= 1 and re.fullmatch(r"[A-Z]{2}-\d+", v["code"])
                                          and datetime.date.fromisoformat(v["day"]) and v["mail"].count("@") == 1)),
           "bounds, patterns and formats are held", r)
    held = how["response_format"]["json_schema"]
    for name, schema in (("150 properties that may be left out", {"type": "object", "properties": {
                             f"property number {i}": {"type": "boolean"} for i in range(150)}}),
                         ("100 kinds of objects", {"anyOf": [{"type": "object", "required": ["kind"], "properties": {
                             "kind": {"const": f"kind {i}"}, "at": {"type": "number"}}} for i in range(100)]}),
                         ("300 values", {"enum": [f"a value of a certain length, {i}" for i in range(300)]})):
        held["schema"] = schema
        r = chat(port, [text(), picture()], **{**how, "temperature": 1, "seed": 4})
        c = r[1]["choices"][0] if r[0] == 200 else {}
        v = json.loads(said(r)) if c.get("finish_reason") == "stop" else ...
        ok(r[0] == 200 and (v is ... or (v in schema["enum"] if "enum" in schema else isinstance(v, dict))),
           f"a schema with {name}", r)
    held["schema"] = {"enum": [0.1, 2.5e-7]}
    r = chat(port, [text(), picture()], **how)
    ok(said(r) in ("0.1", "2.5e-07"), "numbers have no more digits than they need, and nothing before them", r)
    held["schema"] = {"$ref": "#"}
    r = chat(port, "Hi", **how)
    ok(r[0] == 400 and r[1]["error"]["code"] == "unsupported" and "'$ref' leads back" in r[1]["error"]["message"],
       "a schema that is itself", r)
    held["schema"] = {"type": "no such type"}
    r = chat(port, "Hi", **how)
    ok(r[0] == 400 and r[1]["error"]["param"] == "response_format", "a schema that is none", r)


def test_forms(port):
    """Schemas and grammars by the names that other servers give them; the beginning of an answer; who speaks first."""
    for how in ({"grammar": 'root ::= "pear" | "plum"'}, {"guided_grammar": 'root ::= "p" ("ear" | "lum")'},
                {"ebnf": 'root ::= "plum" | "pear"'}, {"guided_choice": ["pear", "plum"]},
                {"structured_outputs": {"choice": ["pear", "plum"]}}, {"guided_regex": "p(ear|lum)"}, {"regex": "^pear$"},
                {"structured_outputs": {"regex": "pear|plum"}}, {"structured_outputs": {"grammar": 'root ::= "pear"'}}):
        r = chat(port, [text(), picture()], **how)
        ok(r[0] == 200 and said(r) in ("pear", "plum"), f"an answer of a form: {how}", r)
    r = chat(port, [text(), picture()], guided_regex="([ -~]?){1500}")
    ok(said(r) == "red apple", "what takes several steps to choose is what would have come anyway", r)
    r = chat(port, "Hi", guided_regex="(.?){4096}", n=64)
    ok(r[0] == 400 and "too many ways" in r[1]["error"]["message"], "one that takes too long", r)
    for how in ({"json_schema": {"const": "42"}}, {"guided_json": {"const": "42"}}, {"guided_json": '{"const": "42"}'},
                {"structured_outputs": {"json": {"const": "42"}}}):
        ok(said(chat(port, [text(), picture()], **how)) == '"42"', f"a schema: {how}")
    odd = 'a "b"\\\n\u00e9'
    ok(said(chat(port, "Hi", guided_choice=[odd])) == odd, "a choice with quotes, backslashes and line breaks")
    for answer in (" no", "no", '{"a": 1}'):
        r = post(port, "/v1/completions", {"prompt": "USER: Hi ASSISTANT:", "guided_choice": [answer], "temperature": 0})
        ok(r[0] == 200 and r[1]["choices"][0]["text"] == answer, f"a completion, to the letter: {answer}", r)
    talk = [{"role": "user", "content": [text(), picture()]}, {"role": "assistant", "content": "red"}]
    r = post(port, "/v1/chat/completions", {"messages": talk, "temperature": 0, "logprobs": True})
    ok(said(r) == " apple" and "".join(t["token"] for t in r[1]["choices"][0]["logprobs"]["content"]) == " apple",
       "an answer goes on from its beginning", r)
    again = post(port, "/v1/chat/completions", {"messages": talk, "temperature": 0, "continue_final_message": True,
                                                "add_generation_prompt": False})
    ok(said(again) == " apple", "as others ask for it", again)
    talk[1]["content"] = ""
    ok(said(post(port, "/v1/chat/completions", {"messages": talk, "temperature": 0})) == "red apple", "an empty one is none")
    for name, talk in (("the assistant", [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Hi"}]),
                       ("the system alone", [{"role": "system", "content": "Say something."}])):
        r = post(port, "/v1/chat/completions", {"messages": talk, "max_tokens": 3})
        ok(r[0] == 200 and r[1]["usage"]["completion_tokens"] > 0, f"who may begin: {name}", r)
    ok(said(post(port, "/chat/completions", {"messages": [{"role": "user", "content": [text(), picture()]}], "temperature": 0}))
       == "red apple", "an address without /v1")


def test_others(port):
    """What other servers know: when an answer may end, and what is likely enough."""
    ask = [text(), picture()]
    whole = chat(port, ask)[1]["usage"]["completion_tokens"]
    r = chat(port, ask, ignore_eos=True, max_tokens=30)
    ok(r[1]["usage"]["completion_tokens"] == 30 and said(r).startswith("red apple"), "no end", r)
    r = chat(port, ask, min_tokens=12, max_tokens=60)
    n = r[1]["usage"]["completion_tokens"]
    ok(12 < n <= 60 and said(r).startswith("red apple") and whole < 12, "an end put off", r)
    ok(said(chat(port, ask, min_tokens=2)) == "red apple", "one that comes late enough anyway")
    ok(said(chat(port, ask, ignore_eos=True, guided_choice=["pear"])) == "pear", "where nothing else may follow it comes")
    first = post(port, "/tokenize", {"content": "red apple"})[1]["tokens"]
    r = chat(port, ask, stop_token_ids=[first[1]])
    ok(r[1]["choices"][0]["finish_reason"] == "stop" and said(r) == "red", "a token that ends", r)
    wild, tame = ([said(chat(port, "Hi", temperature=2, max_tokens=12, seed=s, min_p=p)) for s in range(4)] for p in (0, 0.99))
    ok(len(set(wild)) > 1 and set(tame) == {said(chat(port, "Hi", max_tokens=12))}, "a floor of probability", (wild, tame))
    plain, held = (chat(port, "Hi", max_tokens=60, logprobs=True, ignore_eos=True, repetition_penalty=p)[1] for p in (1, 10))
    plain, held = (len({t["token"].strip() for t in r["choices"][0]["logprobs"]["content"]}) for r in (plain, held))
    ok(plain < held > 50, "a penalty for what was said", (plain, held))
    same = chat(port, ask, min_p=0, repetition_penalty=1, min_tokens=0, ignore_eos=False, stop_token_ids=[])
    ok(said(same) == "red apple", "and none")


def test_tokens(port):
    prompt = "USER: What is this? ASSISTANT:"
    r = post(port, "/tokenize", {"model": "demo", "prompt": prompt})
    ids = r[1]["tokens"]
    ok(r[0] == 200 and r[1]["count"] == len(ids) > 4 and r[1]["max_model_len"] == 1024, "the tokens of a prompt", r)
    ok(post(port, "/tokenize", {"content": prompt})[1]["tokens"] == ids[1:] ==
       post(port, "/tokenize", {"prompt": prompt, "add_special_tokens": False})[1]["tokens"], "without its beginning")
    ok(post(port, "/detokenize", {"tokens": ids[1:]})[1] == {"prompt": prompt, "content": prompt}, "and back")
    odd = "caf\u00e9 \U0001f34e\n\t x"
    ok(post(port, "/detokenize", {"tokens": post(port, "/tokenize", {"content": odd})[1]["tokens"]})[1]["content"] == odd,
       "any text comes back")
    ok(post(port, "/detokenize", {"tokens": []})[1]["content"] == "" and
       post(port, "/tokenize", {"content": ""})[1]["tokens"] == [], "none are no text")
    how = {"max_tokens": 6, "temperature": 0}
    text_ = post(port, "/v1/completions", {"prompt": prompt, **how})
    of = post(port, "/v1/completions", {"prompt": ids, **how})
    ok(of[0] == 200 and of[1]["choices"] == text_[1]["choices"] and of[1]["usage"]["prompt_tokens"] == len(ids),
       "a prompt of tokens is that prompt", (of, text_))
    many = post(port, "/v1/completions", {"prompt": [ids, prompt, ids], **how})
    ok([c["text"] for c in many[1]["choices"]] == [of[1]["choices"][0]["text"]] * 3, "several, of either kind", many)
    echo = post(port, "/v1/completions", {"prompt": ids[1:], "echo": True, **how})
    ok(echo[1]["choices"][0]["text"].startswith(prompt), "repeated, it is text", echo)
    for name, path, body, param, word in (
            ("no number", "/v1/completions", {"prompt": [1, "a"]}, "prompt", "a string among its tokens"),
            ("one below", "/v1/completions", {"prompt": [[1], [-5]]}, "prompt[1]", "-5"),
            ("one past the last", "/v1/completions", {"prompt": [1536]}, None, "1536"),
            ("none", "/v1/completions", {"prompt": [[]]}, "prompt[0]", "empty"),
            ("too many", "/v1/completions", {"prompt": [1] * 2000}, "prompt", "2000"),
            ("no text", "/tokenize", {}, "prompt", "missing"),
            ("a list", "/tokenize", {"content": [1]}, "content", "an array"),
            ("no tokens", "/detokenize", {}, "tokens", "missing"),
            ("a huge one", "/detokenize", {"tokens": [1 << 40]}, "tokens", "no token's number")):
        r = post(port, path, body)
        ok(r[0] == 400 and r[1]["error"]["param"] == param and word in r[1]["error"]["message"], f"wrong tokens: {name}", r)
    ok(request(port, "POST", "/tokenize", b"x" * (2 << 20))[0] == 413, "megabytes")


def test_stream(port):
    whole = said(chat(port, [text(), picture()]))
    body = {"model": "demo", "messages": [{"role": "user", "content": [text(), picture()]}], "temperature": 0,
            "stream_options": {"include_usage": True}}
    status, headers, got, closed = events(port, "/v1/chat/completions", body)
    ok(status == 200 and headers["content-type"].startswith("text/event-stream") and closed, "a stream", (headers, got))
    ok("".join(e["choices"][0]["delta"].get("content", "") for e in got if e["choices"]) == whole, "has the whole text", got)
    ok(got[0]["choices"][0]["delta"]["role"] == "assistant" and got[-2]["choices"][0]["finish_reason"] == "stop" and
       got[-1]["choices"] == [] and got[-1]["usage"]["completion_tokens"] > 0 and got[0]["usage"] is None, "role, end, usage",
       got)
    ok(got[0]["choices"][0]["delta"]["content"] == "" and got[-2]["choices"][0]["delta"] == {} and
       all("role" not in e["choices"][0]["delta"] for e in got[1:-1]), "the role comes first and alone, the end last", got)
    ok(len({e["id"] for e in got}) == 1 and got[0]["object"] == "chat.completion.chunk", "one id")
    _, _, got, closed = events(port, "/v1/completions", {"model": "demo", "prompt": "USER: Hi ASSISTANT:", "max_tokens": 5})
    ok(closed and got[-1]["choices"][0]["finish_reason"] in ("stop", "length"), "a completion's stream", got)
    r = post(port, "/v1/completions", {"model": "demo", "prompt": ["USER: A ASSISTANT:", "USER: B ASSISTANT:"], "n": 2,
                                       "max_tokens": 2, "temperature": 0})
    many = post(port, "/v1/completions", {"prompt": ["USER: A ASSISTANT:"] * 40, "max_tokens": 1, "temperature": 0})
    ok(many[0] == 200 and len({x["text"] for x in many[1]["choices"]}) == 1 and len(many[1]["choices"]) == 40, "40 prompts", many)
    c = r[1]["choices"]
    ok([x["index"] for x in c] == [0, 1, 2, 3] and c[0]["text"] == c[1]["text"] and c[2]["text"] == c[3]["text"],
       "several prompts, several answers", r)


WRONG = [  # name, members (... takes one away), status, field, a word of the message
    ("no messages", {"messages": ...}, 400, "messages", "missing"),
    ("no message", {"messages": []}, 400, "messages", "0 messages"),
    ("messages as text", {"messages": "hi"}, 400, "messages", "string"),
    ("a message as text", {"messages": ["hi"]}, 400, "messages[0]", "string"),
    ("no role", {"messages": [{"content": "x"}]}, 400, "messages[0].role", "missing"),
    ("a message of nobody's", {"messages": [{"role": "critic", "content": "x"}]}, 400, "messages[0].role", "'critic'"),
    ("the assistant last, twice", {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"},
                                                {"role": "assistant", "content": "z"}]}, 400, "messages", "ends with 2 messages"),
    ("a number as content", {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", "number"),
    ("a part without a type", {"messages": [{"role": "user", "content": [{}]}]}, 400, "messages[0].content[0].type", "missing"),
    ("sound", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "messages[0].content[0].type",
     "input_audio"),
    ("a picture without an address", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400,
     "messages[0].content[0].image_url.url", "missing"),
    ("a picture of nothing", {"messages": [{"role": "user", "content": [picture("data:image/png;base64,AAAA")]}]}, 400,
     "messages[0].content[0].image_url", "no picture"),
    ("no base64", {"messages": [{"role": "user", "content": [picture("data:image/png;base64,%")]}]}, 400,
     "messages[0].content[0].image_url", "base64"),
    ("a file", {"messages": [{"role": "user", "content": [picture("file:///etc/passwd")]}]}, 400,
     "messages[0].content[0].image_url", "neither"),
    ("an address", {"messages": [{"role": "user", "content": [picture("http://127.0.0.1:1/x.png")]}]}, 400,
     "messages[0].content[0].image_url", "not allowed"),
    ("a thousand pictures", {"messages": [{"role": "user", "content": [picture()] * 1000}]}, 400, "messages", "more than 32"),
    ("a mark without a picture", {"messages": [{"role": "user", "content": "<image>"}]}, 400, "messages[0].content", "<image>"),
    ("another model", {"model": "gpt-4"}, 404, "model", "gpt-4"),
    ("another model, cut in a character", {"model": "\u2603" * 80}, 404, "model", "\u2603"),
    ("heat", {"temperature": 3}, 400, "temperature", "0 to 2"),
    ("heat in words", {"temperature": "hot"}, 400, "temperature", "string"),
    ("top_p", {"top_p": -1}, 400, "top_p", "0 to 1"),
    ("n", {"n": 0}, 400, "n", "1 to 64"),
    ("a fraction", {"max_tokens": 1.5}, 400, "max_tokens", "whole"),
    ("no tokens", {"max_tokens": 0}, 400, "max_tokens", "want 1"),
    ("stop", {"stop": 7}, 400, "stop", "array"),
    ("stops", {"stop": ["a", 7]}, 400, "stop[1]", "number"),
    ("a long stop", {"stop": ["a", "b" * 70000]}, 400, "stop[1]", "longer"),
    ("a schema that is too large", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "array", "items": {}, "minItems": 10 ** 9}}}}, 400, "response_format", "more than 4096"),
    ("a schema with too many values", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "enum": ["x" * 40 + str(i) for i in range(9000)]}}}}, 400, "response_format", "more than 262144 bytes"),
    ("a name that is no list", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "properties": {"a": {}}, "required": "a"}}}}, 400, "response_format", "'required' is no list"),
    ("a speaker without a name", {"messages": [{"role": "", "content": "Hi"}]}, 400, "messages[0].role", "is '', want system"),
    ("a penalty past its range", {"presence_penalty": 3}, 400, "presence_penalty", "-2 to 2"),
    ("a bias for no token", {"logit_bias": {"x": 1}}, 400, "logit_bias", "no token's number"),
    ("a bias for a token past the last", {"logit_bias": {"1536": 1}}, 400, "logit_bias", "1536"),
    ("a bias past its range", {"logit_bias": {"5": 101}}, 400, "logit_bias.5", "-100 to 100"),
    ("a bias that is a list", {"logit_bias": [1]}, 400, "logit_bias", "array"),
    ("another server's penalty", {"repetition_penalty": 0}, 400, "repetition_penalty", "0.01 to 100"),
    ("another server's floor", {"min_p": 1.1}, 400, "min_p", "0 to 1"),
    ("another server's typical tokens", {"typical_p": 0.5}, 400, "typical_p", "not supported"),
    ("functions", {"functions": [{"name": "f"}]}, 400, "functions", "not supported"),
    ("another server's schema", {"guided_json": {"type": "object", "required": 5}}, 400, "guided_json", "no list"),
    ("another server's expression", {"guided_regex": "[.*"}, 400, "guided_regex", "does not end"),
    ("an expression that looks ahead", {"structured_outputs": {"regex": "(?=a)b"}}, 400, "structured_outputs.regex", "looking"),
    ("a grammar that is none", {"grammar": "root ::= rule"}, 400, "grammar", "no rule 'rule'"),
    ("a choice of nothing", {"guided_choice": []}, 400, "guided_choice", "nothing"),
    ("a choice of numbers", {"structured_outputs": {"choice": [1]}}, 400, "structured_outputs.choice", "strings"),
    ("two forms", {"grammar": 'root ::= "a"', "json_schema": {}}, 400, "grammar", "without 'json_schema'"),
    ("a number as a grammar", {"ebnf": 5}, 400, "ebnf", "string"),
    ("another server's least", {"min_tokens": -5}, 400, "min_tokens", "0 to"),
    ("no end", {"ignore_eos": "x"}, 400, "ignore_eos", "true or false"),
    ("ids that end", {"stop_token_ids": ["x"]}, 400, "stop_token_ids", "whole numbers"),
    ("too many that end", {"stop_token_ids": [5] * 65}, 400, "stop_token_ids", "more than 64"),
    ("one that ends and is none", {"stop_token_ids": [1536]}, 400, None, "token 1536"),
    ("special tokens", {"skip_special_tokens": False}, 400, "skip_special_tokens", "not supported"),
    ("the best of several", {"best_of": 2}, 400, "best_of", "not supported"),
    ("the best of a word", {"best_of": "2"}, 400, "best_of", "string"),
    ("spoken answers", {"modalities": ["text", "audio"]}, 400, "modalities", "'text'"),
    ("a number past whole ones", {"max_tokens": 1e300}, 400, "max_tokens", "whole"),
    ("stream", {"stream": "yes"}, 400, "stream", "true or false"),
    ("top_logprobs alone", {"top_logprobs": 2}, 400, "top_logprobs", "logprobs"),
    ("too many logprobs", {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "20"),
    ("a format", {"response_format": {"type": "xml"}}, 400, "response_format.type", "json_object"),
    ("a schema that is a number", {"response_format": {"type": "json_object", "schema": 0}}, 400, "response_format.schema",
     "object"),
    ("a schema that is none", {"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", "missing"),
    ("over the context", {"messages": [{"role": "user", "content": "word " * 30000}]}, 400, "messages", "context"),
]


def test_errors(port):
    for name, how, status, param, word in WRONG:
        r = chat(port, "Hi", **how)
        e = r[1].get("error", {})
        ok(r[0] == status and e.get("param") == param and word in e.get("message", "") and "type" in e, f"wrong: {name}", r)
    for name, body in (("half a body", b'{"model":'), ("an array", b"[]"), ("deep", b'{"a":' + b"[" * 100000), ("empty", b""),
                       ("not UTF-8", b'{"model":"\xff"}'), ("twice", b'{"n":1,"n":2}'), ("NUL", b'{"model":"\\u0000"}')):
        status, _, data = request(port, "POST", "/v1/chat/completions", body)
        ok(status == 400 and json.loads(data)["error"]["code"] == "invalid_json", f"no JSON: {name}", data)
    for body in (b'{"model":"a\\u0000"}', b'{"a\\u0000":1}'):
        message = json.loads(request(port, "POST", "/v1/chat/completions", body)[2])["error"]["message"]
        ok("\\u0000" in message and "JSON_" not in message and "NUL" not in message, "a NUL is named as it was written", message)


class Pictures(BaseHTTPRequestHandler):
    """What pictures behind addresses may be."""
    asked, release = 0, threading.Event()

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/x.png")
            self.end_headers()
            return
        if self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
            return
        if self.path == "/slow":
            Pictures.asked += 1
            Pictures.release.wait(60)
        self.send_response(200 if self.path != "/none" else 404)
        self.end_headers()
        try:
            while self.path == "/endless":
                self.wfile.write(b"x" * 65536)
            self.wfile.write(APPLE_BYTES)
        except OSError:
            pass


def test_addresses():
    web = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    web.daemon_threads = True
    threading.Thread(target=web.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{web.server_port}"
    with Server("serve", "--model-path", DEMO, "--allow-image-urls") as s:
        for name, url in (("an address", base), ("a name", f"http://localhost:{web.server_port}"), ("IPv6", "http://[::1]:1"),
                          ("a number", f"http://2130706433:{web.server_port}"), ("mapped", "http://[::ffff:127.0.0.1]:1")):
            r = chat(s.port, [text(), picture(url + "/x.png")])
            ok(r[0] == 400 and "private address" in r[1]["error"]["message"], f"private: {name}", r)
    with Server("serve", "--model-path", DEMO, "--allow-private-urls") as s:
        ok(said(chat(s.port, [text(), picture(base + "/x.png")])) == "red apple", "allowed, it is fetched")
        ok(said(chat(s.port, [text(), picture(base + "/away")])) == "red apple", "through a redirect too")
        for name, path, word in (("none", "/none", "404"), ("a circle", "/loop", "redirects"), ("no end", "/endless", "larger")):
            r = chat(s.port, [text(), picture(base + path)])
            ok(r[0] == 400 and word in r[1]["error"]["message"], f"fetching: {name}", r)
        test_slow_addresses(s, base)
    web.shutdown()


def test_slow_addresses(s, slow):
    """A host that does not answer holds up nobody but those who wait for it."""
    other = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    other.daemon_threads = True
    threading.Thread(target=other.serve_forever, daemon=True).start()
    got = []
    threads = [threading.Thread(target=lambda: got.append(chat(s.port, [text(), picture(slow + "/slow")]))) for _ in range(40)]
    for t in threads:
        t.start()
    wait_for(lambda: Pictures.asked)
    start = time.time()
    r = chat(s.port, [text(), picture()])
    there = chat(s.port, [text(), picture(f"http://127.0.0.1:{other.server_port}/x.png"), picture()])
    taken = time.time() - start
    ok(said(r) == "red apple" and there[0] == 200 and taken < 5, f"a slow host: others are answered in {taken:.2f} s", (r, there))
    ok(Pictures.asked <= 8 and not got, "it is asked a few at a time", (Pictures.asked, got))
    body = json.dumps({"messages": [{"role": "user", "content": [text(), picture(slow + "/slow")]}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    left = raw(s.port, head + body, timeout=0.3)
    active = wait_for(lambda: metric(s.port, "llava_http_requests_active") == 41)
    ok(left == b"" and active, "who leaves while a picture is fetched is not waited for", active)
    Pictures.release.set()
    for t in threads:
        t.join()
    ok(len(got) == 40 and all(said(r) == "red apple" for r in got), "and answers all when it answers", got[:2])
    other.shutdown()


def test_realms(port, one, other):
    """What one key's, or address's, prompts have left in the cache is no other's to find: how much of a guess is cached would
    tell it, a token at a time."""
    def cached(who, end):
        body = {"prompt": "USER: The word that opens the door is " + end, "max_tokens": 1}
        return post(port, "/v1/completions", body, headers=who)[1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    cached(one, "apple and pear. ASSISTANT:")
    own, others = cached(one, "apple and"), cached(other, "apple and")
    ok(own > 8 and others == 0, "nobody else's prompts are cached", (own, others))
    ok(cached(other, "apple and") > 8, "but one's own are")

    def pictures(who):
        body = {"messages": [{"role": "user", "content": [picture(), text()]}], "max_tokens": 1}
        post(port, "/v1/chat/completions", body, headers=who)
        data = request(port, "GET", "/metrics", headers=who)[2].decode()
        return int(re.search(r"^llava_pictures_cached_total (\d+)", data, re.M)[1])
    before = pictures(one)
    ok(pictures(other) == before, "nor are their pictures found computed", before)


def test_slow_crowd():
    """One client who names many hosts that do not answer does not get all connections."""
    class Web(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 256
    web = Web(("0.0.0.0", 0), Pictures)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    Pictures.release.clear()

    def ask(who, *hosts, path="/slow"):
        content = [text()] + [picture(f"http://{h}:{web.server_port}{path}") for h in hosts]
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0}
        return post(s.port, "/v1/chat/completions", body, headers={"X-Forwarded-For": who})
    with Server("serve", "--model-path", DEMO, "--allow-private-urls", "--trust-forwarded") as s:
        before = Pictures.asked
        crowd = [threading.Thread(target=ask, args=("10.0.0.1", *[f"127.0.{r}.{i}" for i in range(1, 31)])) for r in range(1, 5)]
        for t in crowd:
            t.start()
        wait_for(lambda: Pictures.asked >= before + 56)
        start = time.time()
        r = ask("10.0.0.2", "127.0.0.1", path="/x.png")
        taken = time.time() - start
        ok(said(r) == "red apple" and taken < 5 and Pictures.asked <= before + 60,
           f"120 slow addresses of one client: another's is fetched in {taken:.2f} s", (r, Pictures.asked - before))
        Pictures.release.set()
        for t in crowd:
            t.join()
        ok(wait_for(lambda: metric(s.port, "llava_http_requests_active") == 1) and s.stop() == 0, "and all end", s.text())
    web.shutdown()


def test_keys():
    with Server("serve", "--model-path", DEMO, "--cors", "https://a.example", env={"LLAVA_API_KEY": "sesame"}) as s:
        ok(request(s.port, "GET", "/health")[0] == 200, "health needs no key")
        status, headers, data = request(s.port, "GET", "/v1/models")
        ok(status == 401 and json.loads(data)["error"]["code"] == "invalid_api_key" and headers["www-authenticate"] == "Bearer",
           "no key", data)
        for path in ("/metrics", "/api/config", "/examples/0-red-apple.png"):
            ok(request(s.port, "GET", path)[0] == 401, f"{path} needs one too")
        page = request(s.port, "GET", "/")
        ok(page[0] == 200 and b"<dialog id=\"lock\"" in page[2], "the page itself needs none: it asks for the key", page)
        ok(request(s.port, "POST", "/worker_generate_stream", {})[0] == 401, "LLaVA's protocol too")
        for key, status in (("sesame", 200), ("Sesame", 401), ("sesam", 401), ("", 401), ("sesame2", 401)):
            got = request(s.port, "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})[0]
            ok(got == status, f"key '{key}': {status}", got)
        basic = base64.b64encode(b"me:sesame").decode()
        ok(request(s.port, "GET", "/metrics", headers={"Authorization": f"Basic {basic}"})[0] == 200, "a password is a key too")
        status, headers, _ = request(s.port, "OPTIONS", "/v1/chat/completions", headers={"Origin": "https://a.example"})
        ok(status == 204 and headers["access-control-allow-origin"] == "https://a.example", "CORS, where it was asked for")
    with open(place("keys"), "wb") as f:
        f.write(b"\xef\xbb\xbffirst \r\n  second\t\r\n \t\r\n# third\r\n  #fourth\r\nlast")
    with Server("serve", "--model-path", DEMO, "--api-key-file", place("keys"), env={"LLAVA_API_KEY": " fifth\r\n"}) as s:
        got = {key: request(s.port, "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})[0] for key in
               ("first", "second", "third", "fourth", "#fourth", "last", "fifth", "", "\t")}
        ok([k for k, v in got.items() if v == 200] == ["first", "second", "last", "fifth"],
           "keys of a file as an editor on Windows leaves it", got)
        test_realms(s.port, {"Authorization": "Bearer first"}, {"Authorization": "Bearer second"})
    with Server("serve", "--model-path", DEMO, "--trust-forwarded") as s:
        test_realms(s.port, {"X-Forwarded-For": "10.0.0.1"}, {"X-Forwarded-For": "10.0.0.2"})
    for name, data, word in (("none", b"# none\n \n", "no API key"), ("utf-16", "key".encode("utf-16"), "UTF-8")):
        with open(place("keys"), "wb") as f:
            f.write(data)
        r = llava("serve", "--model-path", DEMO, "--api-key-file", place("keys"), "--port", "0")
        ok(r.code == 1 and word in r.err, f"a file of keys: {name}", r.text)
    with Server("serve", "--model-path", DEMO) as s:
        ok("access-control-allow-origin" not in request(s.port, "GET", "/v1/models")[1], "else none")
        ok(request(s.port, "OPTIONS", "/v1/models")[0] == 405, "and no preflight")


def test_metrics(port):
    before = metric(port, "llava_answers_total")
    chat(port, "Hi", max_tokens=2)
    ok(metric(port, "llava_answers_total") == before + 1, "answers are counted")
    data = request(port, "GET", "/metrics")[2].decode()
    for name in ("llava_first_token_seconds_bucket", "llava_requests_waiting", "llava_tokens_total", "llava_cache_positions",
                 "llava_pictures_total", "process_resident_memory_max_bytes", "llava_http_requests_total"):
        ok(name in data, f"metric {name}")
    ok(all(len(x.split(" ")) == 2 for x in data.splitlines() if not x.startswith("#")), "lines are name and value")


with Server("serve", "--model-path", DEMO) as server:
    test_models(server.port)
    test_chat(server.port)
    test_tilt(server.port)
    test_logprobs(server.port)
    test_prompt_logprobs(server.port)
    test_schema(server.port)
    test_forms(server.port)
    test_others(server.port)
    test_tokens(server.port)
    test_stream(server.port)
    test_errors(server.port)
    test_metrics(server.port)
    ok(server.stop() == 0, "an orderly end", server.text())
test_addresses()
test_slow_crowd()
test_keys()
finish()
