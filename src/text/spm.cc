/* The C door to libsentencepiece. No exception leaves this file. */
#include "text/spm.h"

#include <sentencepiece_processor.h>

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

struct spm {
    sentencepiece::SentencePieceProcessor sp;
    std::string unk_text;
};

extern "C" int spm_open(struct spm **ret, const void *model, size_t n, char *msg, size_t msg_cap)
{
    struct spm *s = nullptr;
    try {
        s = new spm;
        auto status = s->sp.LoadFromSerializedProto({ static_cast<const char *>(model), n });
        if (status.ok() && s->sp.GetPieceSize() > 0) {
            status = s->sp.Decode(std::vector<int>{ s->sp.unk_id() }, &s->unk_text);
            if (status.ok()) {
                *ret = s;
                return 0;
            }
        }
        std::snprintf(msg, msg_cap, "%s", status.ok() ? "no pieces" : status.ToString().c_str());
    } catch (const std::exception &x) {
        std::snprintf(msg, msg_cap, "%s", x.what());
    }
    delete s;
    return -1;
}

extern "C" void spm_close(struct spm *s)
{
    delete s;
}

extern "C" int32_t spm_size(const struct spm *s)
{
    return s->sp.GetPieceSize();
}

extern "C" int32_t spm_unk(const struct spm *s)
{
    return s->sp.unk_id();
}

extern "C" enum spm_kind spm_kind(const struct spm *s, int32_t id)
{
    return s->sp.IsByte(id) ? SPM_BYTE : s->sp.IsControl(id) ? SPM_CONTROL : s->sp.IsUnknown(id) ? SPM_UNKNOWN
         : s->sp.IsUnused(id) ? SPM_UNUSED : SPM_NORMAL;
}

extern "C" float spm_score(const struct spm *s, int32_t id)
{
    return s->sp.GetScore(id);
}

extern "C" const char *spm_piece(const struct spm *s, int32_t id, size_t *n)
{
    const std::string &piece = s->sp.IdToPiece(id);
    *n = piece.size();
    return piece.c_str();
}

extern "C" int32_t spm_find(const struct spm *s, const char *piece, size_t n)
{
    return s->sp.PieceToId({ piece, n });
}

extern "C" const char *spm_unk_text(const struct spm *s)
{
    return s->unk_text.c_str();
}

extern "C" int spm_encode(const struct spm *s, const char *text, size_t n, void (*put)(void *ctx, int32_t id),
                          void *ctx)
{
    try {
        std::vector<int> ids;
        if (!s->sp.Encode({ text, n }, &ids).ok()) return -1;
        for (int id : ids) put(ctx, id);
        return 0;
    } catch (const std::exception &) {
        return -1;
    }
}
