/* Copies of boxes from matrices in memory to shared memory by sm_90's own engine: one thread asks for them, and they
 * are there when a barrier says so (PTX ISA, "cp.async.bulk.tensor"). The units see what was copied without a fence.
 * (That fence waits for all copies of a thread, so a ring that threads fill has one item under way.) A map of the
 * matrix, made by the host, is an argument of the kernel. */
#pragma once
#include "kern/gpu/wgmma.h"

#if GPU_HAS_WGMMA
#    include <cuda.h>

/* A box's rows lie in shared memory one behind the other, as wide as the box: 32, 64 or 128 bytes. Their 16-byte
 * pieces are permuted by where they are, so that pieces of eight rows lie in different banks: bit 4 of the place by
 * bit 7, bits 4 and 5 by 7 and 8, or bits 4 to 6 by 7 to 9: wgmma.h's tile. What is beyond the matrix becomes 0. */
typedef CUtensorMap tma_map;

/* Of a matrix of rows `pitch` bytes apart, of which `width` bytes count, both multiples of 16; p on 16 bytes. The box:
 * `rows` rows, at most 256, of `bytes` bytes. */
static inline tma_map tma_map_of(const void *p, int64_t width, int64_t height, int64_t pitch, int bytes, int rows)
{
    static void *encode;
    if (!encode) {
        gpu(DriverEntryPointQueryResult) found;
        gpu_check(gpu(GetDriverEntryPointByVersion)("cuTensorMapEncodeTiled", &encode, 12000, gpu(EnableDefault),
                                                    &found));
        if (!encode) gpu_lost("the driver has no cuTensorMapEncodeTiled");
    }
    tma_map m;
    const cuuint64_t size[] = { (cuuint64_t)width, (cuuint64_t)height }, stride[] = { (cuuint64_t)pitch };
    const cuuint32_t box[] = { (cuuint32_t)bytes, (cuuint32_t)rows }, each[] = { 1, 1 };
    const CUtensorMapSwizzle turn = bytes == 32   ? CU_TENSOR_MAP_SWIZZLE_32B
                                    : bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                  : CU_TENSOR_MAP_SWIZZLE_128B;
    const CUresult rc = ((decltype(&cuTensorMapEncodeTiled))encode)(
        &m, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)p, size, stride, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, turn,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (rc != CUDA_SUCCESS) BUG("no map of [%lld, %lld bytes]: %d", (long long)height, (long long)width, (int)rc);
    return m;
}

/* The box from (row, byte) on is on its way to `to`; b counts its bytes. By one thread. */
__device__ inline void tma_copy(uint32_t to, const tma_map *m, int byte, int row, const uint64_t *b)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(m), "r"(byte), "r"(row), "r"(shared_at(b))
                 : "memory");
}

#endif
