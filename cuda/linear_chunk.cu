/* A region of a 4-bit matrix to bf16 scratch, for the products that read bf16. Bound by memory: 0.5 bytes a weight read, 2 written, which a
 * chunk's size keeps in the second-level cache; 4.2 instructions a weight.
 *
 * Where blocks of 64 do not straddle rows, a lane decodes half a block from one 16-byte load, and the warp turns its 2 KiB around in shared
 * memory, so that each store is 512 contiguous bytes. Else a thread decodes eight weights, whose block it finds by flat index: 6.6
 * instructions a weight, for the rare shapes. */
#include "cuda/linear_product.cuh"

enum { THREADS = 256, WARP_BYTES = 2048, SHARED_BYTES = THREADS / 32 * WARP_BYTES + 64 };

/* The region of `weight`: its first element's flat index, and rows `columns` apart of `width` each, `count` elements in all. */
struct region {
    struct nb_packed_weight weight;
    int64_t begin, count;
    int columns, width;
    nb_bf16 *to;
};

NB_KERNEL_FUNCTION int64_t flat_of(const struct region &r, int64_t element)
{
    int64_t row = element / r.width;
    return r.begin + row * r.columns + (element - row * r.width);
}

__global__ void __launch_bounds__(THREADS) weight_chunk_kernel(const struct region r)
{
    unsigned char *shared = nb_shared_memory();
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    float *codebook = (float *)(shared + THREADS / 32 * WARP_BYTES);
    if (threadIdx.x < 16)
        codebook[threadIdx.x] = r.weight.codebook[threadIdx.x];
    nb_block_barrier();
    unsigned char *tile = shared + warp * WARP_BYTES;
    int64_t first = ((int64_t)blockIdx.x * (THREADS / 32) + warp) * 1024, element = first + lane * 32;
    if (element < r.count) {
        int64_t flat = flat_of(r, element);
        uint4 packed = nb_load_once_16(r.weight.data + flat / 2);
        struct nb_scaled_codes codes = nb_scale_codes(codebook, nb_block_scale(r.weight, r.weight.nested_map, flat / 64));
        const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            *(uint4 *)(tile + (lane * 4 + (i ^ (lane / 2 % 4))) * 16) = nb_decode_8(codes, words[i]);
    }
    nb_warp_barrier();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int chunk = i * 32 + lane, owner = chunk / 4;
        if (first + chunk * 8 < r.count)
            *(uint4 *)(r.to + first + chunk * 8) = *(const uint4 *)(tile + (owner * 4 + (chunk % 4 ^ (owner / 2 % 4))) * 16);
    }
}

__global__ void __launch_bounds__(THREADS) weight_chunk_straddling_kernel(const struct region r)
{
    float *codebook = (float *)nb_shared_memory();
    if (threadIdx.x < 16)
        codebook[threadIdx.x] = r.weight.codebook[threadIdx.x];
    nb_block_barrier();
    int64_t element = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
    if (element >= r.count)
        return;
    int64_t flat = flat_of(r, element);
    struct nb_scaled_codes codes = nb_scale_codes(codebook, nb_block_scale(r.weight, r.weight.nested_map, flat / 64));
    *(uint4 *)(r.to + element) = nb_decode_8(codes, *(const uint32_t *)(r.weight.data + flat / 2));
}

nb_status nb_weight_chunk(cudaStream_t stream, const struct nb_weight *weight, struct nb_weight_region region, nb_dptr scratch)
{
    struct region r = {nb_packed_weight_of(weight), (int64_t)region.row_begin * weight->columns + region.column_begin,
        (int64_t)region.rows * region.width, weight->columns, region.width, nb_pointer<nb_bf16>(scratch)};
    bool whole = weight->columns % 64 == 0 && region.column_begin % 64 == 0 && region.width % 64 == 0;
    if (!whole && region.width == weight->columns)
        whole = r.begin % 64 == 0 && r.count % 64 == 0; /* whole rows are one run of blocks */
    struct nb_launch launch = {dim3(nb_blocks_of(r.count, whole ? THREADS * 32 : THREADS * 8)), THREADS, SHARED_BYTES};
    if (whole)
        return nb_cuda_launch("weight_chunk", weight_chunk_kernel, launch, stream, r);
    launch.shared_bytes = 64;
    return nb_cuda_launch("weight_chunk_straddling", weight_chunk_straddling_kernel, launch, stream, r);
}

nb_status nb_weight_chunk_prepare(void)
{
    NB_TRY(nb_cuda_load("weight_chunk", weight_chunk_kernel, SHARED_BYTES));
    return nb_cuda_load("weight_chunk_straddling", weight_chunk_straddling_kernel, 64);
}
