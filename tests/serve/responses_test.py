#!/usr/bin/python3
"""/v1/responses of `llava serve` on the demo model: shapes, events, pictures, schemas, what is refused."""
import base64
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import finish, ok, place  # noqa: E402
from serving import APPLE, DEMO, Server, post, request  # noqa: E402

with open(APPLE, "rb") as f:
    DATA = "data:image/png;base64," + base64.b64encode(f.read()).decode()
LOOK = [{"role": "user", "content": [{"type": "input_text", "text": "What is this?"},
                                     {"type": "input_image", "image_url": DATA, "detail": "auto"}]}]


def ask(port, given, **more):
    return post(port, "/v1/responses", {"model": "demo", "input": given, "temperature": 0, **more})


def events(port, given, **more):
    body = {"model": "demo", "input": given, "temperature": 0, "stream": True, **more}
    status, headers, data = request(port, "POST", "/v1/responses", body)
    got = []
    for part in data.decode().split("\n\n"):
        lines = part.split("\n")
        if lines[0].startswith("event: "):
            got.append((lines[0][7:], json.loads(lines[1][6:])))
    return status, headers, got


def said(r):
    return r[1]["output"][0]["content"][0]["text"]


def test_whole(port):
    r = ask(port, LOOK, metadata={"a": "b"}, instructions="Be brief.", store=True, user="x", parallel_tool_calls=False)
    v = r[1]
    ok(r[0] == 200 and said(r) == "red apple", "a picture is described", r)
    m = v["output"][0]
    ok(v["object"] == "response" and v["status"] == "completed" and v["id"].startswith("resp_") and v["model"] == "demo" and
       m["id"].startswith("msg_") and m["type"] == "message" and m["role"] == "assistant" and m["status"] == "completed" and
       m["content"][0]["type"] == "output_text" and m["content"][0]["annotations"] == [], "the response's shape", v)
    u = v["usage"]
    ok(u["total_tokens"] == u["input_tokens"] + u["output_tokens"] and u["input_tokens_details"]["cached_tokens"] >= 0 and
       u["output_tokens_details"]["reasoning_tokens"] == 0, "usage", u)
    ok(v["metadata"] == {"a": "b"} and v["instructions"] == "Be brief." and v["temperature"] == 0 and v["top_p"] == 1 and
       v["user"] == "x" and v["parallel_tool_calls"] is False and v["error"] is None and v["store"] is True and
       v["tools"] == [] and v["text"] == {"format": {"type": "text"}}, "what was asked is repeated", v)
    ok(said(ask(port, [{"type": "message", **LOOK[0]}])) == "red apple", "an item with its type")
    talk = LOOK + [{"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                    "content": [{"type": "output_text", "text": "red apple", "annotations": []}]},
                   {"role": "user", "content": "Why?"}]
    r = ask(port, talk, max_output_tokens=6)
    chat = post(port, "/v1/chat/completions", {"temperature": 0, "max_tokens": 6, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": DATA}]},
        {"role": "assistant", "content": "red apple"}, {"role": "user", "content": "Why?"}]})
    ok(said(r) == chat[1]["choices"][0]["message"]["content"] and
       r[1]["usage"]["input_tokens"] == chat[1]["usage"]["prompt_tokens"], "a conversation is what a chat is", (r, chat))
    r = ask(port, "Tell me everything.", max_output_tokens=1)
    ok(r[1]["status"] == "incomplete" and r[1]["incomplete_details"] == {"reason": "max_output_tokens"} and
       r[1]["output"][0]["status"] == "incomplete", "one that is cut", r)
    schema = {"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"], "additionalProperties": False}
    r = ask(port, LOOK, text={"format": {"type": "json_schema", "name": "x", "strict": True, "schema": schema}})
    ok(isinstance(json.loads(said(r))["red"], bool) and r[1]["text"]["format"]["name"] == "x", "a schema", r)
    r = ask(port, "Hi", text={"verbosity": "low"}, max_output_tokens=1)
    ok(r[1]["text"] == {"verbosity": "low", "format": {"type": "text"}}, "text without a format", r)
    r = ask(port, LOOK, include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = r[1]["output"][0]["content"][0]["logprobs"]
    ok("".join(t["token"] for t in tokens) == said(r) and all(len(t["top_logprobs"]) == 2 for t in tokens), "logprobs", r)


def test_stream(port):
    status, headers, got = events(port, LOOK, include=["message.output_text.logprobs"])
    names = [name for name, _ in got]
    ok(status == 200 and headers["content-type"].startswith("text/event-stream"), "a stream", headers)
    ok(names[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"] and
       names[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                      "response.completed"] and set(names[4:-4]) == {"response.output_text.delta"}, "events in order", names)
    ok([e["sequence_number"] for _, e in got] == list(range(len(got))) and all(n == e["type"] for n, e in got), "numbers, types")
    text = "".join(e["delta"] for n, e in got if n == "response.output_text.delta")
    last = got[-1][1]["response"]
    ok(text == got[-4][1]["text"] == last["output"][0]["content"][0]["text"] == "red apple", "the text, in parts and whole", got)
    ok({e["item_id"] for _, e in got if "item_id" in e} == {last["output"][0]["id"]} and
       {e["response"]["id"] for _, e in got if "response" in e} == {last["id"]}, "one id each")
    ok(got[0][1]["response"]["status"] == "in_progress" and got[0][1]["response"]["usage"] is None and
       last["usage"]["output_tokens"] > 0 and "completed_at" in last, "from in_progress to completed", last)
    parts = [t for n, e in got if n == "response.output_text.delta" for t in e["logprobs"]]
    whole = last["output"][0]["content"][0]["logprobs"]
    ok(parts and whole[:len(parts)] == parts and "".join(t["token"] for t in whole) == text, "logprobs", (parts, whole))
    _, _, got = events(port, "Tell me everything.", max_output_tokens=1)
    ok(got[-1][0] == "response.incomplete" and got[-1][1]["response"]["status"] == "incomplete", "one that is cut", got[-1])
    _, _, got = events(port, "Hi", text={"format": {"type": "json_schema", "name": "x", "schema": {"const": 5}}})
    ok(got[-1][1]["response"]["output"][0]["content"][0]["text"] == "5", "with a schema", got)


def test_kept(port, other):
    """A request may name the response before, or an item of it."""
    first = ask(port, LOOK)
    ok(first[1]["store"] is True and len(first[1]["id"]) == 37, "a response is kept", first)
    status, _, data = request(port, "GET", "/v1/responses/" + first[1]["id"])
    ok(status == 200 and json.loads(data) == first[1], "and can be had again", data)
    whole = ask(port, LOOK + first[1]["output"] + [{"role": "user", "content": "Why?"}], max_output_tokens=8)
    then = ask(port, "Why?", previous_response_id=first[1]["id"], max_output_tokens=8)
    ok(said(then) == said(whole) and then[1]["usage"]["input_tokens"] == whole[1]["usage"]["input_tokens"] and
       then[1]["previous_response_id"] == first[1]["id"], "the next goes on from it", (then, whole))
    third = ask(port, "And?", previous_response_id=then[1]["id"], max_output_tokens=4)
    ok(third[1]["usage"]["input_tokens"] > then[1]["usage"]["input_tokens"], "and the one after that", third)
    item = {"type": "item_reference", "id": first[1]["output"][0]["id"]}
    named = ask(port, LOOK + [item, {"role": "user", "content": "Why?"}], max_output_tokens=8)
    ok(said(named) == said(whole), "an item by its name", named)
    _, _, got = events(port, "Hi", max_output_tokens=3)
    ok(ask(port, "So?", previous_response_id=got[-1][1]["response"]["id"])[0] == 200, "one that was streamed is kept too")
    r = ask(port, "Hi", store=False)
    ok(r[1]["store"] is False and request(port, "GET", "/v1/responses/" + r[1]["id"])[0] == 404, "but none that asks not to be")
    status, _, data = request(port, "DELETE", "/v1/responses/" + first[1]["id"])
    ok(status == 200 and json.loads(data)["deleted"] is True, "one is forgotten", data)
    ok(request(port, "DELETE", "/v1/responses/" + first[1]["id"])[0] == 404 and
       request(port, "GET", "/v1/responses/" + first[1]["id"])[0] == 404, "and is gone")
    r = ask(port, LOOK + [item, {"role": "user", "content": "Why?"}])
    ok(r[0] == 404 and r[1]["error"]["code"] == "item_not_found", "its items too", r)
    r = ask(port, [{"type": "item_reference"}, {"type": "item_reference", "id": "x" * 5000}])
    ok(r[0] == 404, "an item without a name", r)
    r = request(port, "PUT", "/v1/responses/x", {})
    ok(r[0] == 405 and r[1]["allow"] == "GET, HEAD, DELETE", "what may be done with one", r)
    mine, yours = ({"headers": {"Authorization": f"Bearer {k}"}} for k in ("mine", "yours"))
    r = post(other, "/v1/responses", {"input": "My secret is", "max_output_tokens": 1}, **mine)
    path = "/v1/responses/" + r[1]["id"]
    ok(request(other, "GET", path, **mine)[0] == 200 and request(other, "GET", path, **yours)[0] == 404 and
       request(other, "DELETE", path, **yours)[0] == 404 and post(other, "/v1/responses", {
           "input": "x", "previous_response_id": r[1]["id"]}, **yours)[0] == 400, "another key finds nothing", r)


def test_full_shelf(port):
    """The oldest make room for new ones, and one that is huge is answered without being kept."""
    large = [{"role": "user", "content": "Hi", "note": "x" * (9 << 20)}]
    ids = [ask(port, large, max_output_tokens=1)[1]["id"] for _ in range(9)]
    there = [request(port, "GET", "/v1/responses/" + i)[0] for i in ids]
    ok(there[0] == 404 and there[-1] == 200 and 5 <= there.count(200) <= 8, "the newest are kept", there)
    r = ask(port, [{"role": "user", "content": "Hi", "note": "x" * (17 << 20)}], max_output_tokens=1)
    ok(r[0] == 200 and r[1]["store"] is False, "a huge one is not", r[1].get("store"))


WRONG = [  # name, members, field, a word of the message
    ("no input", {"input": None}, "input", "missing"),
    ("a number", {"input": 5}, "input", "a number"),
    ("nothing", {"input": []}, "input", "0 messages"),
    ("an earlier response", {"previous_response_id": "resp_1"}, "previous_response_id", "no response 'resp_1' is kept"),
    ("no name", {"previous_response_id": 5}, "previous_response_id", "a number"),
    ("metadata", {"metadata": "x"}, "metadata", "a string"),
    ("what is repeated", {"metadata": {"x": "y" * (1 << 20)}}, None, "repeats"),
    ("a conversation", {"conversation": "conv_1"}, "conversation", "not supported"),
    ("later", {"background": True}, "background", "not supported"),
    ("an input by name", {"prompt": {"id": "p"}}, "prompt", "not supported"),
    ("a search", {"input": [{"type": "web_search_call"}]}, "input[0]", "web_search_call"),
    ("a call of nothing", {"input": [{"type": "function_call"}]}, "input[0].name", "missing"),
    ("tools of another kind", {"tools": [{"type": "file_search"}]}, "tools[0].type", "file_search"),
    ("a format", {"text": {"format": {"type": "xml"}}}, "text.format.type", "none of"),
    ("no schema", {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "missing"),
    ("a schema that is none", {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "odd"}}}},
     "text.format", "no type"),
    ("several", {"n": 2}, "n", "one answer"),
    ("cutting", {"truncation": "auto"}, "truncation", "disabled"),
    ("no tokens", {"max_output_tokens": 0}, "max_output_tokens", "want 1"),
    ("a file", {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
     "input[0].content[0].image_url", "missing"),
    ("too long", {"input": "word " * 30000}, "input", "context"),
]


def test_wrong(port):
    for name, how, param, word in WRONG:
        r = ask(port, **{"given": "Hi", **{("given" if k == "input" else k): v for k, v in how.items()}})
        e = r[1].get("error", {})
        ok(r[0] == 400 and e.get("param") == param and word in e["message"], f"wrong: {name}", r)
    r = ask(port, "Hi", model="gpt-5")
    ok(r[0] == 404 and r[1]["error"]["code"] == "model_not_found", "another model", r)


with open(place("keys"), "w") as f:
    f.write("mine\nyours\n")
with Server("serve", "--model-path", DEMO) as server, \
        Server("serve", "--model-path", DEMO, "--api-key-file", place("keys")) as keyed:
    test_whole(server.port)
    test_stream(server.port)
    test_kept(server.port, keyed.port)
    test_full_shelf(server.port)
    test_wrong(server.port)
    ok(server.stop() == 0, "an orderly end", server.text())
finish()
