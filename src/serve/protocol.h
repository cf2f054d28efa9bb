/* Words of LLaVA's protocol between web server, controller and workers (llava/constants.py, llava/serve). A stream is
 * a sequence of JSON objects, each ended by a NUL; each has all the text so far, the prompt included. */
#pragma once

/* White space before a message means nothing: a stream that is silent for long has some, since LLaVA's web server gives
 * up after ten seconds without a byte. */
#define PROTOCOL_PING "\n"

#define PROTOCOL_ERROR_TEXT "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
#define PROTOCOL_MODERATION_TEXT "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."
#define PROTOCOL_TOO_LONG "Exceeds max token length. Please start a new conversation, thanks."

enum protocol_code { PROTOCOL_OK = 0, PROTOCOL_WORKER = 1, PROTOCOL_NO_WORKER = 2, PROTOCOL_UNREACHABLE = 3 };
enum {
    PROTOCOL_BEAT_S = 15,    /* between a worker's heartbeats */
    PROTOCOL_EXPIRE_S = 30,  /* after the last of which it is forgotten */
    PROTOCOL_ASK_S = 5,      /* most time for a short request, and to connect */
    PROTOCOL_STALL_S = 120,  /* of a stream without a byte: the first token on a slow machine takes its time */
    PROTOCOL_BODY_MAX = 64 << 20,
};
