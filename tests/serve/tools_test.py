#!/usr/bin/python3
"""Functions that answers call, in /v1/chat/completions and /v1/responses of `llava serve` on the demo model."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import finish, ok  # noqa: E402
from serving import DEMO, Server, post, request  # noqa: E402

COLOUR = {"name": "get_colour", "description": "The colour of a thing", "parameters": {
    "type": "object", "additionalProperties": False, "required": ["thing", "n"], "$defs": {"thing": {"enum": ["apple", "pear"]}},
    "properties": {"thing": {"$ref": "#/$defs/thing"}, "n": {"type": "integer", "minimum": 1, "maximum": 3}}}}
STOP = {"name": "stop"}
TOOLS = [{"type": "function", "function": f} for f in (COLOUR, STOP)]
FLAT = [{"type": "function", **f} for f in (COLOUR, STOP)]
HI = [{"role": "user", "content": "What colour is it?"}]


def chat(port, messages=HI, tools=TOOLS, **more):
    return post(port, "/v1/chat/completions", {"messages": messages, "tools": tools, "max_tokens": 400, "temperature": 0, **more})


def events(port, path, body):
    data = request(port, "POST", path, {**body, "stream": True, "temperature": 0})[2].decode()
    return [json.loads(x.split("data: ", 1)[1]) for x in data.split("\n\n") if "data: {" in x]


def fits(call):
    v = json.loads(call["arguments"])
    if call["name"] == "stop":
        return v == {}
    return call["name"] == "get_colour" and v["thing"] in ("apple", "pear") and 1 <= v["n"] <= 3


def test_chat(port):
    named = {"type": "function", "function": {"name": "get_colour"}}
    for name, choice in (("one of them", "required"), ("one by its name", named)):
        for seed in range(3):
            r = chat(port, tool_choice=choice, temperature=1, seed=seed)
            c = r[1]["choices"][0]
            call = c["message"]["tool_calls"][0]
            ok(c["finish_reason"] == "tool_calls" and c["message"]["content"] is None and call["type"] == "function" and
               call["id"].startswith("call_") and fits(call["function"]), f"{name}: seed {seed}", r)
    ok(call["function"]["name"] == "get_colour", "and it is that one")
    r = chat(port, tools=TOOLS[1:], tool_choice="required", n=2)
    calls = [c["message"]["tool_calls"][0] for c in r[1]["choices"]]
    ok([c["function"]["name"] for c in calls] == ["stop"] * 2 and len({c["id"] for c in calls}) == 2, "two answers, two calls", r)
    r = chat(port, max_tokens=30)
    ok(r[0] == 200 and ("tool_calls" in r[1]["choices"][0]["message"] or r[1]["choices"][0]["message"]["content"] is not None),
       "an answer or a call", r)
    r = chat(port, tool_choice="none", max_tokens=5)
    bare = post(port, "/v1/chat/completions", {"messages": HI, "max_tokens": 5, "temperature": 0})
    ok(r[1]["choices"][0]["message"] == bare[1]["choices"][0]["message"], "no call: they change nothing", (r, bare))
    call = {"id": "call_1", "type": "function", "function": {"name": "get_colour", "arguments": '{"thing":"apple","n":1}'}}
    talk = HI + [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1",
                                                                                 "content": [{"type": "text", "text": "red"}]}]
    r = chat(port, talk, max_tokens=3)
    told = post(port, "/v1/chat/completions", {"messages": talk, "max_tokens": 3})
    ok(r[0] == 200 and told[0] == 200 and r[1]["usage"]["prompt_tokens"] > told[1]["usage"]["prompt_tokens"],
       "what came of a call", (r, told))
    got = events(port, "/v1/chat/completions", {"messages": HI, "tools": TOOLS, "tool_choice": "required"})
    deltas = [e["choices"][0]["delta"] for e in got]
    ok(deltas[0]["role"] == "assistant" and deltas[1]["tool_calls"][0]["index"] == 0 and
       fits(deltas[1]["tool_calls"][0]["function"]) and deltas[-1] == {} and
       got[-1]["choices"][0]["finish_reason"] == "tool_calls", "a call in a stream", got)
    whole = chat(port, max_tokens=40)[1]["choices"][0]
    got = events(port, "/v1/chat/completions", {"messages": HI, "tools": TOOLS, "max_tokens": 40})
    said = "".join(e["choices"][0]["delta"].get("content") or "" for e in got)
    ok(said == (whole["message"]["content"] or "") and got[-1]["choices"][0]["finish_reason"] == whole["finish_reason"],
       "an answer that could have been a call, in a stream", (got, whole))


def test_responses(port):
    body = {"input": "What colour is it?", "tools": FLAT, "tool_choice": "required", "temperature": 0}
    r = post(port, "/v1/responses", body)
    item = r[1]["output"][0]
    ok(item["type"] == "function_call" and item["call_id"].startswith("call_") and item["id"].startswith("fc_") and fits(item) and
       item["status"] == "completed" and r[1]["tools"] == FLAT and r[1]["tool_choice"] == "required", "a response that calls", r)
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "red"}
    more = post(port, "/v1/responses", {"input": [result], "previous_response_id": r[1]["id"], "max_output_tokens": 4})
    named = post(port, "/v1/responses", {"input": [*HI, {"type": "item_reference", "id": item["id"]}, result],
                                         "max_output_tokens": 4})
    ok(more[0] == 200 and named[1]["usage"]["input_tokens"] == more[1]["usage"]["input_tokens"], "what came of it", (more, named))
    got = events(port, "/v1/responses", body)
    types = [e["type"] for e in got]
    ok(types == ["response.created", "response.in_progress", "response.output_item.added",
                 "response.function_call_arguments.delta", "response.function_call_arguments.done",
                 "response.output_item.done", "response.completed"], "events of a call", types)
    ok(got[3]["delta"] == got[4]["arguments"] == got[5]["item"]["arguments"] and fits(got[5]["item"]) and
       got[2]["item"]["arguments"] == "" and got[6]["response"]["output"] == [got[5]["item"]], "say what it is", got)
    got = events(port, "/v1/responses", {**body, "tool_choice": "auto", "max_output_tokens": 30})
    types = [e["type"] for e in got]
    ok(types[2] == "response.output_item.added" and types[-2] == "response.output_item.done" and
       types[-1] in ("response.completed", "response.incomplete"), "an answer or a call", types)


WRONG = [  # name, members, field, a word of the message
    ("of another kind", {"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    ("no function", {"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
    ("no name", {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing"),
    ("an odd name", {"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools[0].function.name", "no name"),
    ("no schema", {"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
     "tools[0].function.parameters", "object"),
    ("a schema that is none", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "odd"}}}]},
     "tools", "no type"),
    ("a choice", {"tool_choice": "maybe"}, "tool_choice", "maybe"),
    ("a choice of none that is there", {"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "'g'"),
    ("with a format", {"response_format": {"type": "json_object"}}, "tools", "without 'response_format'"),
    ("too many", {"tools": TOOLS * 65}, "tools", "more than 128"),
    ("a number", {"tools": 5}, "tools", "array"),
    ("a result without text", {"messages": HI + [{"role": "tool", "tool_call_id": "x"}]}, "messages[1].content", "missing"),
    ("a call without a function", {"messages": HI + [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
     "messages[1].tool_calls[0].function", "missing"),
]


def test_wrong(port):
    for name, how, param, word in WRONG:
        r = chat(port, **how)
        ok(r[0] == 400 and r[1]["error"]["param"] == param and word in r[1]["error"]["message"], f"wrong: {name}", r)
    r = post(port, "/v1/completions", {"prompt": "x", "tools": TOOLS})
    ok(r[0] == 400 and r[1]["error"]["param"] == "tools", "completions have none", r)


with Server("serve", "--model-path", DEMO) as server:
    test_chat(server.port)
    test_responses(server.port)
    test_wrong(server.port)
    ok(server.stop() == 0, "an orderly end", server.text())
finish()
