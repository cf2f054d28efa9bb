#!/usr/bin/python3
"""The same through libllava.so from Python, with nothing but ctypes: ask.py MODEL PICTURE QUESTION.

The classes mirror llava.h's structs, field by field and in their order. LLAVA_LIB names the library where the system
does not find it by itself."""
import ctypes as c
import os
import sys


class Error(c.Structure):
    _fields_ = [("code", c.c_int), ("message", c.c_char * 1000)]


class Options(c.Structure):
    _fields_ = [("model_path", c.c_char_p), ("model_base", c.c_char_p), ("model_name", c.c_char_p),
                ("vision_tower", c.c_char_p), ("device", c.c_char_p), ("dtype", c.c_char_p), ("kv_dtype", c.c_char_p),
                ("load_8bit", c.c_bool), ("load_4bit", c.c_bool), ("lora", c.c_char_p * 16), ("n_lora", c.c_int),
                ("context", c.c_int), ("threads", c.c_int), ("quiet", c.c_bool)]


class Sampling(c.Structure):
    _fields_ = [("temperature", c.c_float), ("top_k", c.c_int), ("top_p", c.c_float), ("seed", c.c_uint64),
                ("max_new_tokens", c.c_int), ("stop", c.POINTER(c.c_char_p)), ("n_stop", c.c_int), ("bias", c.c_void_p),
                ("n_bias", c.c_int), ("presence_penalty", c.c_float), ("frequency_penalty", c.c_float),
                ("min_p", c.c_float), ("repetition_penalty", c.c_float), ("min_new_tokens", c.c_int),
                ("no_end", c.c_bool), ("stop_ids", c.POINTER(c.c_int32)), ("n_stop_ids", c.c_int), ("text", c.c_int)]


TextFn = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.POINTER(c.c_char), c.c_size_t)
lib = c.CDLL(os.environ.get("LLAVA_LIB", "libllava.so.0"))
lib.llava_options_default.restype = Options
lib.llava_sampling_default.restype = Sampling
for name in ("llava_session_close", "llava_conversation_close", "llava_image_close", "llava_close"):
    getattr(lib, name).argtypes, getattr(lib, name).restype = [c.c_void_p], None


def call(name, *args):
    """A function that can fail, by its name without llava_."""
    error = Error()
    if getattr(lib, "llava_" + name)(*args, c.byref(error)) < 0:
        raise RuntimeError(error.message.decode())


@TextFn
def show(_, text, n):
    sys.stdout.buffer.write(c.string_at(text, n))
    sys.stdout.buffer.flush()
    return True


def main(model, picture, question):
    options, sampling, prompt = lib.llava_options_default(), lib.llava_sampling_default(), c.c_char_p()
    engine, image, talk, session = (c.c_void_p() for _ in range(4))
    options.model_path = model.encode()
    try:
        call("open", c.byref(engine), c.byref(options))
        call("image_open", c.byref(image), engine, picture.encode())
        call("conversation_open", c.byref(talk), engine, None)
        call("conversation_ask", talk, question.encode(), 1)
        call("conversation_prompt", c.byref(prompt), talk)
        call("session_open", c.byref(session), engine)
        call("session_prompt", session, prompt, c.byref(image), 1)
        call("session_generate", session, c.byref(sampling), show, None, None)
        print()
    except RuntimeError as e:
        sys.exit(f"ask: {e}")
    finally:
        lib.llava_session_close(session)
        lib.llava_conversation_close(talk)
        lib.llava_image_close(image)
        lib.llava_close(engine)


main(*sys.argv[1:4])
