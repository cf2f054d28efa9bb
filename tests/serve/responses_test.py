#!/usr/bin/python3
"""/v1/responses of `llava serve` on the demo model: shapes, events, pictures, schemas, what is refused."""
import base64
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import finish, ok  # noqa: E402
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
       v["user"] == "x" and v["parallel_tool_calls"] is False and v["error"] is None and v["store"] is False and
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


WRONG = [  # name, members, field, a word of the message
    ("no input", {"input": None}, "input", "missing"),
    ("a number", {"input": 5}, "input", "a number"),
    ("nothing", {"input": []}, "input", "0 messages"),
    ("an earlier response", {"previous_response_id": "resp_1"}, "previous_response_id", "no response is kept"),
    ("a conversation", {"conversation": "conv_1"}, "conversation", "no response is kept"),
    ("later", {"background": True}, "background", "not supported"),
    ("an earlier item", {"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "none is kept"),
    ("a call", {"input": [{"type": "function_call", "name": "f"}]}, "input[0]", "function_call"),
    ("tools", {"tools": [{"type": "function", "name": "f"}]}, "tools", "not supported"),
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
    ok(request(port, "GET", "/v1/responses/resp_1")[0] == 404, "none is kept")


with Server("serve", "--model-path", DEMO) as server:
    test_whole(server.port)
    test_stream(server.port)
    test_wrong(server.port)
    ok(server.stop() == 0, "an orderly end", server.text())
finish()
